/* variants: tsan */
/* Connections: which frames belong to one, how long it is remembered, and what gives way to what. */

#include <pthread.h>

#include "conntrack_bench.h"
#include "siphash.h"

/* ---- the hash ---- */

/* The paper's appendix A; and what CPython 3.11 (a SipHash-1-3 that is not ours) makes of bytes 0, 1, 2, …, key 0. */
static void the_hash_is_siphash(void)
{
    const uint64_t paper_key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    const uint64_t no_key[2] = {0, 0};
    uint8_t bytes[48];
    uint64_t words[6];

    for (uint32_t index = 0; index < sizeof(bytes); index++)
        bytes[index] = (uint8_t)index;
    memcpy(words, bytes, sizeof(words));
    words[1] &= ~0ull >> 8;
    EXPECT(rway_siphash(2, 4, paper_key, words, 2) == 0xa129ca6149be45e5);
    memcpy(words, bytes, sizeof(words));
    words[2] &= ~0ull >> 8;
    EXPECT(rway_siphash(1, 3, no_key, words, 3) == 0x37332b1389daa4ff);
    memcpy(words, bytes, sizeof(words));
    words[5] &= ~0ull >> 8;
    EXPECT(rway_siphash(1, 3, no_key, words, 6) == 0x8485f7f5ae725a0d);
}

/* ---- who passes ---- */

static void replies_of_an_allowed_connection_pass_and_nothing_else_does(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    struct packet reply = tcp_back(1, ACK, 501, 101);

    EXPECT(came(&bench, tcp_back(1, SYN | ACK, 500, 101)) == RWAY_DROP_POLICY);
    EXPECT(connect_tcp(&bench, 1) && is_open(&bench, 1));
    EXPECT(!is_open(&bench, 2));
    EXPECT(judge_with(&bench, &reply, NULL, ASIDE, INSIDE) == RWAY_DROP_POLICY);  /* by another port */
    EXPECT(judge_with(&bench, &reply, NULL, OUTSIDE, ASIDE) == RWAY_DROP_POLICY); /* to another */
    reply.source_port++;
    EXPECT(came(&bench, reply) == RWAY_DROP_POLICY);
    reply = tcp_back(1, ACK, 501, 101);
    reply.vlan = 7;
    EXPECT(came(&bench, reply) == RWAY_DROP_POLICY);
    EXPECT(counts_of(&bench).made == 1 && counts_of(&bench).frames == 3);
    close_bench(&bench);
}

static void an_echo_is_answered_only_by_its_own_reply(void)
{
    struct bench bench = bench_of(IPPROTO_ICMP);
    struct packet request = {
        .source = 1, .destination = 2, .source_port = 8 << 8, .protocol = IPPROTO_ICMP, .sequence = 77u << 16};
    struct packet reply = {.source = 2, .destination = 1, .protocol = IPPROTO_ICMP, .sequence = 77u << 16};
    struct packet asked_back = {
        .source = 2, .destination = 1, .source_port = 8 << 8, .protocol = IPPROTO_ICMP, .sequence = 77u << 16};

    EXPECT(came(&bench, reply) == RWAY_DROP_POLICY);
    EXPECT(sent(&bench, request) == RWAY_PASSES && came(&bench, reply) == RWAY_PASSES);
    EXPECT(came(&bench, asked_back) == RWAY_DROP_POLICY);
    reply.sequence = 78u << 16;
    EXPECT(came(&bench, reply) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

static void an_error_about_a_known_connection_passes_to_its_sender_only(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct packet query = udp(1);
    struct packet error = {
        .source = 99, .destination = query.source, .source_port = 3 << 8 | 3, .protocol = IPPROTO_ICMP};
    struct packet answer = reversed(query);
    struct packet other = udp(2);

    EXPECT(judge_with(&bench, &error, &query, OUTSIDE, INSIDE) == RWAY_DROP_POLICY);
    EXPECT(out(&bench, &query) == RWAY_PASSES);
    EXPECT(judge_with(&bench, &error, &query, OUTSIDE, INSIDE) == RWAY_PASSES);
    EXPECT(judge_with(&bench, &error, &query, INSIDE, OUTSIDE) == RWAY_DROP_POLICY);
    EXPECT(judge_with(&bench, &error, &answer, OUTSIDE, INSIDE) == RWAY_DROP_POLICY);
    EXPECT(judge_with(&bench, &error, &other, OUTSIDE, INSIDE) == RWAY_DROP_POLICY);
    error.destination++;
    EXPECT(judge_with(&bench, &error, &query, OUTSIDE, INSIDE) == RWAY_DROP_POLICY);
    bench.now += TIMEOUTS.udp + 1; /* the errors have not let it last */
    EXPECT(back(&bench, &answer) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

/* ---- what no segment is ---- */

static void flags_that_no_segment_has_do_not_pass_inside_a_known_connection(void)
{
    static const uint8_t SCANS[] = {0, FIN, FIN | 8 | 32, 8, 32, SYN | FIN, SYN | FIN | ACK, SYN | RST, RST | FIN, 255};
    static const uint8_t GOOD[] = {ACK, ACK | 8, ACK | 32, ACK | FIN, SYN, SYN | ACK, 0xc0 | SYN, RST | ACK, RST};
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(connect_tcp(&bench, 1));
    for (uint32_t i = 0; i < sizeof(SCANS); i++) {
        EXPECT(came(&bench, tcp_back(1, SCANS[i], 501, 101)) == RWAY_DROP_POLICY);
        EXPECT(sent(&bench, tcp(1, SCANS[i], 101, 501)) == RWAY_DROP_POLICY); /* whom the rules would let */
    }
    bench.now += TIMEOUTS.tcp_established; /* nor have they left a mark */
    EXPECT(is_open(&bench, 1));
    EXPECT(counts_of(&bench).invalid == 2 * sizeof(SCANS));
    for (uint32_t i = 0; i < sizeof(GOOD); i++)
        EXPECT(sent(&bench, tcp(1, GOOD[i], 101, 501)) == RWAY_PASSES);
    close_bench(&bench);
}

/* ---- how long ---- */

static void a_connection_lasts_as_long_as_its_state_says(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    bench.now = UINT32_MAX - 100; /* and the clock wraps meanwhile */
    EXPECT(sent(&bench, tcp(1, SYN, 100, 0)) == RWAY_PASSES);
    bench.now += TIMEOUTS.tcp_opening + 1;
    EXPECT(!is_open(&bench, 1));
    EXPECT(connect_tcp(&bench, 2));
    bench.now += TIMEOUTS.tcp_established;
    EXPECT(is_open(&bench, 2));
    bench.now += TIMEOUTS.tcp_established + 1;
    EXPECT(!is_open(&bench, 2));
    EXPECT(connect_tcp(&bench, 3));
    EXPECT(sent(&bench, tcp(3, FIN | ACK, 101, 501)) == RWAY_PASSES);
    bench.now += TIMEOUTS.tcp_closing + 1; /* half closed is still open */
    EXPECT(came(&bench, tcp_back(3, FIN | ACK, 501, 102)) == RWAY_PASSES);
    bench.now += TIMEOUTS.tcp_closing;
    EXPECT(is_open(&bench, 3));
    bench.now += TIMEOUTS.tcp_closing + 1;
    EXPECT(!is_open(&bench, 3));
    close_bench(&bench);
}

static void an_answer_lets_udp_last_longer(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct packet query = udp(1);
    struct packet answer = reversed(query);

    EXPECT(out(&bench, &query) == RWAY_PASSES);
    bench.now += TIMEOUTS.udp;
    EXPECT(back(&bench, &answer) == RWAY_PASSES);
    bench.now += TIMEOUTS.udp_answered;
    EXPECT(back(&bench, &answer) == RWAY_PASSES);
    bench.now += TIMEOUTS.udp_answered + 1;
    EXPECT(back(&bench, &answer) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

static void the_sweep_frees_what_is_over(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct packet query = udp(1);

    for (uint32_t client = 0; client < CONNECTIONS; client++)
        EXPECT(sent(&bench, udp(client)) == RWAY_PASSES);
    bench.now += TIMEOUTS.udp + 1;
    for (uint32_t turn = 0; turn < CONNECTIONS; turn++)
        out(&bench, &query);
    EXPECT(counts_of(&bench).made - counts_of(&bench).gone == 1);
    close_bench(&bench);
}

static void a_reset_that_the_other_end_does_not_believe_changes_nothing(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(connect_tcp(&bench, 1));
    EXPECT(came(&bench, tcp_back(1, RST, 9, 0)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(1, ACK, 101, 501)) == RWAY_PASSES); /* a challenge: RFC 5961 3.2 */
    bench.now += TIMEOUTS.tcp_established;
    EXPECT(is_open(&bench, 1));
    EXPECT(came(&bench, tcp_back(1, RST, 501, 0)) == RWAY_PASSES);
    bench.now += TIMEOUTS.tcp_closing + 1;
    EXPECT(!is_open(&bench, 1));
    close_bench(&bench);
}

/* RFC 5961 4.2: the other end answers such a SYN with an ACK of the connection as it is. */
static void a_forged_reset_and_opening_of_the_opener_do_not_unseat_a_connection(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(connect_tcp(&bench, 1));
    EXPECT(sent(&bench, tcp(1, RST, 7, 0)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(1, SYN, 7000, 0)) == RWAY_PASSES);
    EXPECT(came(&bench, tcp_back(1, ACK, 501, 101)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(1, ACK, 101, 501)) == RWAY_PASSES);
    bench.now += TIMEOUTS.tcp_established;
    EXPECT(is_open(&bench, 1));
    close_bench(&bench);
}

static void only_who_sees_the_answer_completes_a_handshake(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(sent(&bench, tcp(1, SYN, 100, 0)) == RWAY_PASSES);
    EXPECT(came(&bench, tcp_back(1, SYN | ACK, 500, 101)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(1, ACK, 101, 0x70000000)) == RWAY_PASSES); /* does not know 501 */
    bench.now += TIMEOUTS.tcp_opening + 1;
    EXPECT(!is_open(&bench, 1));
    close_bench(&bench);
}

static void the_ports_of_a_closed_connection_can_be_used_again_by_who_may_open_one(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(connect_tcp(&bench, 1));
    sent(&bench, tcp(1, FIN | ACK, 101, 501));
    came(&bench, tcp_back(1, FIN | ACK, 501, 102));
    EXPECT(came(&bench, tcp_back(1, SYN, 900, 0)) == RWAY_DROP_POLICY);
    EXPECT(connect_tcp(&bench, 1));
    bench.now += TIMEOUTS.tcp_established;
    EXPECT(is_open(&bench, 1) && counts_of(&bench).made == 2 && counts_of(&bench).gone == 1);
    close_bench(&bench);
}

/* ---- rules that change ---- */

static void rules_that_change_decide_anew_over_who_opened(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    struct rway_rule_counts sums[2];

    EXPECT(connect_tcp(&bench, 1));
    replace(&bench, table_that(RWAY_ALLOW, RWAY_DENY, IPPROTO_UDP, INSIDE));
    EXPECT(is_open(&bench, 1));
    replace(&bench, table_that(RWAY_ALLOW, RWAY_DENY, IPPROTO_TCP, INSIDE));
    for (int frame = 0; frame < 3; frame++) /* though rules would let the server's frames pass */
        EXPECT(came(&bench, tcp_back(1, ACK, 501, 101)) == RWAY_DROP_POLICY);
    EXPECT(sent(&bench, tcp(1, ACK, 101, 501)) == RWAY_DROP_POLICY);
    EXPECT(rway_filter_counts(bench.filter, sums, 2) == 2 && sums[0].frames == 5); /* 1 allowed before, as "rule" */
    replace(&bench, table_that(RWAY_DENY, RWAY_ALLOW, IPPROTO_TCP, INSIDE));
    EXPECT(is_open(&bench, 1));
    close_bench(&bench);
}

static void a_connection_under_way_is_taken_up_unless_a_rule_denies_its_other_direction(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(sent(&bench, tcp(1, ACK, 101, 501)) == RWAY_PASSES && is_open(&bench, 1));
    replace(&bench, table_that(RWAY_ALLOW, RWAY_DENY, IPPROTO_TCP, INSIDE));
    EXPECT(came(&bench, tcp_back(2, ACK, 501, 101)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(2, ACK, 101, 501)) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

/* ---- room ---- */

static void a_flood_of_unanswered_flows_displaces_no_established_one(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    enum { FRIENDS = CONNECTIONS / 2, FLOOD = 20 * CONNECTIONS };
    uint32_t open = 0;

    for (uint32_t client = 0; client < FRIENDS; client++)
        EXPECT(connect_tcp(&bench, client));
    for (uint32_t client = FRIENDS; client < FRIENDS + FLOOD; client++)
        EXPECT(sent(&bench, tcp(client, SYN, client, 0)) == RWAY_PASSES);
    for (uint32_t client = 0; client < FRIENDS; client++)
        open += is_open(&bench, client);
    EXPECT(open == FRIENDS);
    EXPECT(counts_of(&bench).refused == 0 && counts_of(&bench).replaced > FLOOD / 2);
    EXPECT(connect_tcp(&bench, FRIENDS + FLOOD)); /* and who is answered at once gets in */
    close_bench(&bench);
}

static void a_full_table_refuses_by_name_and_keeps_what_it_has(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    uint32_t made = 0;
    uint32_t open = 0;
    int last = RWAY_PASSES;

    for (uint32_t client = 0; client < 4 * CONNECTIONS; client++) {
        last = sent(&bench, tcp(client, SYN, 100, 0));
        if (last != RWAY_PASSES)
            continue;
        came(&bench, tcp_back(client, SYN | ACK, 500, 101));
        made += sent(&bench, tcp(client, ACK, 101, 501)) == RWAY_PASSES;
    }
    EXPECT(last == RWAY_DROP_CONNECTIONS && counts_of(&bench).refused == 4 * CONNECTIONS - made);
    EXPECT(made >= CONNECTIONS && made <= rway_conntrack_places(CONNECTIONS));
    for (uint32_t client = 0; client < 4 * CONNECTIONS; client++)
        open += is_open(&bench, client);
    EXPECT(open == made);
    bench.now += TIMEOUTS.tcp_established + 1;
    EXPECT(connect_tcp(&bench, 5 * CONNECTIONS));
    close_bench(&bench);
}

/* A web server's clients that close by RST (SO_LINGER 0) leave connections of which nobody knows that they are over. */
static void connections_that_a_reset_closed_give_way_last_and_not_after_an_ack(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    enum { FRIENDS = CONNECTIONS / 4, CLOSED = 8 * CONNECTIONS };
    uint32_t passed = 0;
    uint32_t open = 0;

    for (uint32_t client = 0; client < FRIENDS; client++) {
        EXPECT(connect_tcp(&bench, client));
        EXPECT(sent(&bench, tcp(client, RST, 7, 0)) == RWAY_PASSES); /* forged: the server goes on */
        EXPECT(came(&bench, tcp_back(client, ACK, 501, 101)) == RWAY_PASSES);
    }
    for (uint32_t client = FRIENDS; client < FRIENDS + CLOSED; client++)
        passed += connect_tcp(&bench, client) && sent(&bench, tcp(client, RST, 102, 0)) == RWAY_PASSES;
    EXPECT(passed == CLOSED && counts_of(&bench).refused == 0);
    for (uint32_t client = 0; client < FRIENDS; client++)
        open += is_open(&bench, client);
    EXPECT(open == FRIENDS);
    close_bench(&bench);
}

static void what_is_over_for_certain_gives_way_before_what_a_reset_may_have_closed(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    enum { RESET = CONNECTIONS / 4, CLOSED = 8 * CONNECTIONS };
    uint32_t open = 0;

    for (uint32_t client = 0; client < RESET; client++)
        EXPECT(connect_tcp(&bench, client) && came(&bench, tcp_back(client, RST, 9, 0)) == RWAY_PASSES);
    for (uint32_t client = RESET; client < RESET + CLOSED; client++) {
        EXPECT(connect_tcp(&bench, client));
        sent(&bench, tcp(client, FIN | ACK, 101, 501));
        came(&bench, tcp_back(client, FIN | ACK, 501, 102));
    }
    for (uint32_t client = 0; client < RESET; client++)
        open += is_open(&bench, client);
    EXPECT(open == RESET && counts_of(&bench).refused == 0);
    close_bench(&bench);
}

static void as_many_connections_as_were_asked_for_have_room(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);

    for (uint32_t client = 0; client < CONNECTIONS; client++) {
        struct packet query = udp(client);
        struct packet answer = reversed(query);

        EXPECT(out(&bench, &query) == RWAY_PASSES && back(&bench, &answer) == RWAY_PASSES);
    }
    EXPECT(counts_of(&bench).made == CONNECTIONS && counts_of(&bench).gone == 0);
    close_bench(&bench);
}

static void a_number_that_cannot_be_is_refused(void)
{
    struct rway_filter *filter = rway_filter_new();
    struct rway_error error;

    EXPECT(rway_filter_track(filter, RWAY_CONNECTIONS_MIN - 1, &TIMEOUTS, &error) == -RWAY_REFUSED_ARGUMENT);
    EXPECT(error.found == RWAY_CONNECTIONS_MIN - 1);
    EXPECT(rway_filter_track(filter, RWAY_CONNECTIONS_MAX + 1, &TIMEOUTS, NULL) < 0);
    EXPECT(rway_filter_conntrack(filter, 0) == NULL);
    EXPECT(rway_filter_track(filter, RWAY_CONNECTIONS_MIN, &TIMEOUTS, &error) == 0);
    EXPECT(rway_filter_track(filter, RWAY_CONNECTIONS_MIN, &TIMEOUTS, &error) == -RWAY_REFUSED_ARGUMENT);
    rway_filter_free(filter);
}

/* ---- against a plain model: one array, looked through from the start ---- */

enum { MODEL_CLIENTS = 200, MODEL_STEPS = 40000 };

struct known {
    bool is;
    bool answered;
    uint32_t deadline;
};

static void random_udp_is_judged_as_a_plain_model_judges_it(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct known model[MODEL_CLIENTS] = {{0}};

    srand(12345);
    for (uint32_t step = 0; step < MODEL_STEPS; step++) {
        uint32_t client = (uint32_t)rand() % MODEL_CLIENTS;
        struct known *known = &model[client];
        bool reply = rand() % 2;
        struct packet packet = reply ? reversed(udp(client)) : udp(client);
        bool alive = known->is && bench.now <= known->deadline;

        EXPECT((reply ? back(&bench, &packet) : out(&bench, &packet)) ==
               (reply && !alive ? RWAY_DROP_POLICY : RWAY_PASSES));
        if (alive || !reply) {
            known->answered = (alive && known->answered) || reply;
            known->is = true;
            known->deadline = bench.now + (known->answered ? TIMEOUTS.udp_answered : TIMEOUTS.udp);
        }
        bench.now += (uint32_t)rand() % 4;
    }
    close_bench(&bench);
}

/* ---- several loops at once ---- */

enum { LOOPS = 3, SHARED_CLIENTS = 64, ROUNDS = 1500 };

struct loop {
    pthread_t thread;
    struct bench bench;
    uint64_t passed;
};

/* Every loop sends and answers for the same clients, each by a clock of its own. */
static void *run_loop(void *argument)
{
    struct loop *loop = argument;

    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct packet query = udp(round % SHARED_CLIENTS);
        struct packet answer = reversed(query);

        loop->bench.now = 1000 + round / 32;
        loop->passed += out(&loop->bench, &query) == RWAY_PASSES;
        loop->passed += back(&loop->bench, &answer) == RWAY_PASSES;
    }
    rway_filter_leave(loop->bench.filter, loop->bench.reader);
    return NULL;
}

static void loops_share_connections_and_make_none_twice(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct loop loops[LOOPS] = {{0}};

    rway_filter_leave(bench.filter, bench.reader);
    for (uint32_t index = 0; index < LOOPS; index++) {
        loops[index].bench = (struct bench){.filter = bench.filter};
        loops[index].bench.reader = (uint32_t)rway_filter_reader_add(bench.filter);
        loops[index].bench.conntrack = rway_filter_conntrack(bench.filter, loops[index].bench.reader);
    }
    for (uint32_t index = 0; index < LOOPS; index++)
        EXPECT(pthread_create(&loops[index].thread, NULL, run_loop, &loops[index]) == 0);
    for (int swap = 0; swap < 20; swap++) /* a loop that gets no processor for a second may miss one */
        rway_filter_replace(bench.filter, table_that(RWAY_DENY, RWAY_ALLOW, IPPROTO_UDP, INSIDE));
    for (uint32_t index = 0; index < LOOPS; index++) {
        pthread_join(loops[index].thread, NULL);
        EXPECT(loops[index].passed == 2 * ROUNDS);
    }
    EXPECT(counts_of(&bench).made - counts_of(&bench).gone == SHARED_CLIENTS);
    close_bench(&bench);
}

int main(void)
{
    the_hash_is_siphash();
    replies_of_an_allowed_connection_pass_and_nothing_else_does();
    an_echo_is_answered_only_by_its_own_reply();
    an_error_about_a_known_connection_passes_to_its_sender_only();
    flags_that_no_segment_has_do_not_pass_inside_a_known_connection();
    a_connection_lasts_as_long_as_its_state_says();
    an_answer_lets_udp_last_longer();
    the_sweep_frees_what_is_over();
    a_reset_that_the_other_end_does_not_believe_changes_nothing();
    a_forged_reset_and_opening_of_the_opener_do_not_unseat_a_connection();
    only_who_sees_the_answer_completes_a_handshake();
    the_ports_of_a_closed_connection_can_be_used_again_by_who_may_open_one();
    rules_that_change_decide_anew_over_who_opened();
    a_connection_under_way_is_taken_up_unless_a_rule_denies_its_other_direction();
    a_flood_of_unanswered_flows_displaces_no_established_one();
    a_full_table_refuses_by_name_and_keeps_what_it_has();
    connections_that_a_reset_closed_give_way_last_and_not_after_an_ack();
    what_is_over_for_certain_gives_way_before_what_a_reset_may_have_closed();
    as_many_connections_as_were_asked_for_have_room();
    a_number_that_cannot_be_is_refused();
    random_udp_is_judged_as_a_plain_model_judges_it();
    loops_share_connections_and_make_none_twice();
    return failures != 0;
}
