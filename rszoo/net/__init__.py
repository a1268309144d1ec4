"""One URL: what is known of it, one request to it, and a download that resumes."""
