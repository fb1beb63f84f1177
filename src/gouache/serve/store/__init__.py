"""What the studio keeps: database, files, gallery, accounts, backups."""
