/* Offload data that belongs to the packet that was judged, and the lies that stack/offload_fits.c must see through. */

#include <stdio.h>

#include "expect.h"
#include "stack.h"

/* What rway_parse says of a packet without options; TCP has 12 bytes of its own. */
static struct rway_headers headers_of(uint16_t ether, uint8_t protocol)
{
    uint16_t l4_offset = ether == 0x0800 ? 34 : 54;
    uint16_t l4_len = protocol == IPPROTO_TCP ? 32 : 8;

    return (struct rway_headers){
        .ether = ether,
        .l3_offset = 14,
        .l4_offset = l4_offset,
        .l4_len = l4_len,
        .payload_offset = (uint16_t)(l4_offset + l4_len),
        .ip_version = ether == 0x0800 ? 4 : 6,
        .protocol = protocol,
        .flags = protocol == IPPROTO_ICMP ? 0 : RWAY_HEADERS_PORTS,
    };
}

static void checksums_fit_at_the_judged_transport_header_only(void)
{
    struct rway_headers tcp = headers_of(0x0800, IPPROTO_TCP);
    struct rway_headers udp = headers_of(0x86dd, IPPROTO_UDP);
    struct rway_headers icmp = headers_of(0x0800, IPPROTO_ICMP);
    struct rway_headers fragment = tcp;
    struct rway_headers arp = {.ether = 0x0806, .l3_offset = 14};
    struct rway_offload none = {0};
    struct rway_offload tcp_sum = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 16};
    struct rway_offload udp_sum = {.flags = RWAY_EXT_CSUM, .csum_start = 54, .csum_offset = 6};
    struct rway_offload lie = {.flags = RWAY_EXT_CSUM, .csum_start = 18, .csum_offset = 18};
    struct rway_offload icmp_sum = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 2};

    fragment.flags |= RWAY_HEADERS_FIRST_FRAGMENT;
    EXPECT(rway_offload_fits(&tcp, &none) && rway_offload_fits(&arp, &none) && rway_offload_fits(&fragment, &none));
    EXPECT(rway_offload_fits(&tcp, &tcp_sum) && rway_offload_fits(&udp, &udp_sum));
    EXPECT(!rway_offload_fits(&tcp, &lie)); /* the destination port */
    EXPECT(!rway_offload_fits(&tcp, &udp_sum) && !rway_offload_fits(&udp, &tcp_sum));
    EXPECT(!rway_offload_fits(&icmp, &icmp_sum) && !rway_offload_fits(&arp, &tcp_sum));
    EXPECT(!rway_offload_fits(&fragment, &tcp_sum));
    tcp_sum.csum_offset = 6;
    EXPECT(!rway_offload_fits(&tcp, &tcp_sum));
}

static void a_checksum_inside_a_tunnel_fits_behind_the_judged_headers(void)
{
    struct rway_headers vxlan = headers_of(0x0800, IPPROTO_UDP);
    struct rway_headers gre = headers_of(0x0800, IPPROTO_GRE);
    struct rway_headers fragment = vxlan;
    struct rway_headers arp = {.ether = 0x0806, .l3_offset = 14};
    struct rway_offload inner = {.flags = RWAY_EXT_CSUM, .csum_start = 84, .csum_offset = 16};
    struct rway_offload segments = inner;

    gre.l4_len = 0;
    gre.payload_offset = gre.l4_offset;
    fragment.flags |= RWAY_HEADERS_LATER_FRAGMENT;
    segments.flags |= RWAY_EXT_GSO;
    segments.gso_type = RWAY_GSO_TCP4;
    segments.gso_size = 1000;
    EXPECT(rway_offload_fits(&vxlan, &inner) && rway_offload_fits(&gre, &inner));
    EXPECT(!rway_offload_fits(&fragment, &inner) && !rway_offload_fits(&arp, &inner));
    EXPECT(!rway_offload_fits(&vxlan, &segments));
    inner.csum_start = vxlan.payload_offset;
    EXPECT(rway_offload_fits(&vxlan, &inner));
    inner.csum_start--;
    EXPECT(!rway_offload_fits(&vxlan, &inner)); /* the UDP header's own last bytes */
    inner.csum_start = gre.l4_offset;
    EXPECT(!rway_offload_fits(&gre, &inner));
}

static int gso_fits(const struct rway_headers *headers, uint16_t type, uint16_t hdr_len)
{
    struct rway_offload offload = {
        .flags = RWAY_EXT_CSUM | RWAY_EXT_GSO,
        .gso_type = type,
        .gso_size = 1000,
        .hdr_len = hdr_len,
        .csum_start = headers->l4_offset,
        .csum_offset = headers->protocol == IPPROTO_TCP ? 16 : 6,
    };

    return rway_offload_fits(headers, &offload);
}

static void segmentation_fits_its_own_protocol_only(void)
{
    struct rway_headers tcp4 = headers_of(0x0800, IPPROTO_TCP);
    struct rway_headers tcp6 = headers_of(0x86dd, IPPROTO_TCP);
    struct rway_headers udp4 = headers_of(0x0800, IPPROTO_UDP);
    struct rway_offload no_checksum = {.flags = RWAY_EXT_GSO, .gso_type = RWAY_GSO_TCP4, .gso_size = 1000};

    EXPECT(gso_fits(&tcp4, RWAY_GSO_TCP4, 0) && gso_fits(&tcp4, RWAY_GSO_TCP4 | RWAY_GSO_ECN, 66));
    EXPECT(gso_fits(&tcp6, RWAY_GSO_TCP6, 86) && gso_fits(&udp4, RWAY_GSO_UDP, 42));
    EXPECT(gso_fits(&tcp4, RWAY_GSO_TCP4, 190)); /* Linux counts payload in its linear part too */
    EXPECT(!gso_fits(&tcp4, RWAY_GSO_TCP4, 65));
    EXPECT(!gso_fits(&tcp4, RWAY_GSO_TCP6, 0) && !gso_fits(&tcp6, RWAY_GSO_TCP4, 0));
    EXPECT(!gso_fits(&tcp4, RWAY_GSO_UDP, 0) && !gso_fits(&udp4, RWAY_GSO_TCP4, 0));
    EXPECT(!gso_fits(&udp4, RWAY_GSO_UDP | RWAY_GSO_ECN, 0) && !gso_fits(&tcp4, RWAY_GSO_NONE, 0));
    EXPECT(!gso_fits(&tcp4, 3, 0)); /* UFO is not carried */
    EXPECT(!rway_offload_fits(&tcp4, &no_checksum));
}

int main(void)
{
    checksums_fit_at_the_judged_transport_header_only();
    a_checksum_inside_a_tunnel_fits_behind_the_judged_headers();
    segmentation_fits_its_own_protocol_only();
    return failures != 0;
}
