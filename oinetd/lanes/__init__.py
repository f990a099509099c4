"""What serves connections. A lane takes a rule from accept to end; the lanes do not know each other."""
