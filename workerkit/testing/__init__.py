"""What tests of workers need: a private RabbitMQ node."""
