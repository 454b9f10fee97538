"""What redis-py raises when a server fails, for readers and writers alike; of the light parts, so without Feast."""

from redis.exceptions import RedisClusterException, RedisError

REDIS_FAILED = (RedisError, RedisClusterException)
"""A cluster that can't be reached, or has no node for a key, is no ``RedisError`` for redis-py."""
