"""What is known of Redis commands: the generated table and the traits that route them."""
