"""RabbitMQ through pika: the only package that imports pika."""
