"""The durable queue: jobs, leases, tasks, admission, notifications."""
