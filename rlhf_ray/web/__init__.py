"""What our local web pages share: headers, a port that is taken before anything is said, templates that escape."""
