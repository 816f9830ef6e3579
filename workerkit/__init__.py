"""RabbitMQ workers in Python that do not lose messages and say why anything died."""
