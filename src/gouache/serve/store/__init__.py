"""What the studio stores: database and its migrations, files, gallery, accounts, backups."""
