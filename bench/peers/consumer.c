/* librabbitmq, the C client: acknowledges each message, or the given number of messages with one frame.
 *
 * Usage: consumer ACKS_PER_FRAME, with the environment that bench/peers/common.py reads; or consumer version.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <amqp.h>
#include <amqp_tcp_socket.h>

static const amqp_channel_t CHANNEL = 1;

static void fail(const char *what) {
    fprintf(stderr, "consumer: %s\n", what);
    exit(1);
}

static char *environment(const char *name) {
    char *value = getenv(name);
    if (value == NULL) fail(name);
    return value;
}

static void check(amqp_connection_state_t connection, const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

/* The only process of its client, so nobody else takes a slot. */
static volatile uint64_t *take_slot(void) {
    struct stat status;
    int file = open(environment("BENCH_COUNTS"), O_RDWR);
    if (file < 0 || fstat(file, &status) < 0) fail("cannot open the counts");
    uint64_t *slots = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (slots == MAP_FAILED) fail("cannot map the counts");
    slots[0] = 1;
    return &slots[1];
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "version") == 0) return puts(amqp_version()) < 0;
    int acks_per_frame = argc == 2 ? atoi(argv[1]) : 0;
    if (acks_per_frame < 1) fail("usage: consumer ACKS_PER_FRAME | version");
    volatile uint64_t *slot = take_slot();

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (socket == NULL || amqp_socket_open(socket, "127.0.0.1", atoi(environment("BENCH_PORT"))) != AMQP_STATUS_OK)
        fail("cannot connect");
    amqp_rpc_reply_t login =
        amqp_login(connection, "/", 0, AMQP_DEFAULT_FRAME_SIZE, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
    if (login.reply_type != AMQP_RESPONSE_NORMAL) fail("cannot log in");
    amqp_channel_open(connection, CHANNEL);
    check(connection, "cannot open a channel");
    amqp_basic_qos(connection, CHANNEL, 0, atoi(environment("BENCH_PREFETCH")), 0);
    check(connection, "basic.qos failed");
    amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes(environment("BENCH_QUEUE")), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    check(connection, "basic.consume failed");

    const struct timeval patience = {0, 20000}; /* then what is left is acknowledged, however few */
    uint64_t last = 0;
    int unacknowledged = 0;
    for (;;) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, &patience, 0);
        if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
            last = envelope.delivery_tag;
            amqp_destroy_envelope(&envelope);
            unacknowledged++;
        } else if (reply.library_error != AMQP_STATUS_TIMEOUT) {
            fail("the connection ended");
        }
        int due = reply.reply_type == AMQP_RESPONSE_NORMAL ? acks_per_frame : 1;
        if (unacknowledged >= due) {
            if (amqp_basic_ack(connection, CHANNEL, last, acks_per_frame > 1) != AMQP_STATUS_OK) fail("cannot ack");
            unacknowledged = 0;
        }
        if (reply.reply_type == AMQP_RESPONSE_NORMAL) ++*slot;
    }
}
