//! What can be set, with the numbers behind the defaults.

use std::sync::Arc;
use std::time::Duration;

use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};

/// The largest UDP payload that MTU discovery tries, in bytes.
///
/// quinn hands ten packets to the kernel in one segmentation-offload call, and the kernel takes at
/// most 64 KiB with headers: beyond that the call fails, quinn drops the error, and not one byte
/// leaves (seen at 6,700). So even where a link takes more (loopback, jumbo frames), 6,500 is all
/// that may be used while segmentation offload is on, which it is whenever the kernel has it.
const MAX_MTU_BYTES: u16 = 6_500;

/// Packets per segmentation-offload call, a constant of quinn 0.11.
const SEGMENTS_PER_SEND: usize = 10;

/// IPv6 and UDP headers.
const HEADER_BYTES: usize = 40 + 8;

const _: () = assert!(
    MAX_MTU_BYTES as usize * SEGMENTS_PER_SEND + HEADER_BYTES <= u16::MAX as usize,
    "a segmentation-offload call beyond 64 KiB sends nothing at all"
);

/// What every path carries, without asking.
const INITIAL_MTU_BYTES: u16 = 1_200;

/// The largest UDP payload taken in: a peer may be configured to send more than this side does.
pub(super) const MAX_RECEIVED_BYTES: u16 = 9_000;

/// Streams that a member may have open at once.
const MAX_STREAMS: u32 = 256;

/// One peer may have this part of all lanes.
const PEER_SHARE: usize = 4;

/// One address may have this part of the handshakes under way: silent sockets of one host must not
/// keep those of all others from being made.
const ADDRESS_SHARE: usize = 4;

/// How many lanes there may be where so many descriptors may be open.
fn lanes_of(descriptors: u64) -> usize {
    usize::try_from(descriptors / 2).map_or(16_384, |half| half.clamp(64, 16_384))
}

/// How many descriptors this process may have.
fn descriptors() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

/// Before a peer has proven who it is, it may send this much and open no stream. It bounds what
/// strangers can make an endpoint hold, and is all that a joining server ever needs.
pub(super) const UNPROVEN_WINDOW_BYTES: u32 = 64 * 1024;

// Where the defaults come from: `examples/throughput.rs`, 1 GiB over one stream on loopback, both
// ends on the two cores of a busy machine, CPU-seconds of both ends together (medians of 5 to 12
// runs, whose spread was a fifth):
//
//   defaults, MTU 6,500            2.0 CPU-s, 820 MiB/s (best 1,170), no packet of 166,000 lost
//   MTU 1,452                      3.6 CPU-s, 420 MiB/s
//   stream window 1 / 16 MiB       2.2 / 2.2; with 16 MiB bursts outran the socket: 444 lost
//   send window 1 / 4 MiB          2.3 / 2.1
//   socket buffers 208 KiB / 1 MiB 2.1 / 1.9, but 3,629 / 905 packets lost
//   pieces of 64 KiB / 1 MiB       2.2 / 2.4 (256 KiB: 2.0); as frames: 2.3
//   acknowledgement every 10 / 20 / 40 packets, AES-128 before AES-256: no difference beyond the
//   spread, so the extension is not used and the provider's order stays.
//
// Congestion control is quinn's Cubic; its BBR is marked experimental.

/// Settings of a [`QuicTransport`](super::QuicTransport).
#[derive(Debug, Clone)]
pub struct QuicConfig {
    stream_window_bytes: u32,
    connection_window_bytes: u32,
    send_window_bytes: u32,
    socket_buffer_bytes: usize,
    client_sockets: usize,
    pub(crate) handshake_deadline: Duration,
    pub(crate) max_pending_handshakes: usize,
    pub(crate) keep_alive: Duration,
    pub(crate) idle_timeout: Duration,
    pub(super) accept_joins: bool,
    pub(super) join_deadline: Duration,
    pub(super) max_joins: usize,
    accepted_window_bytes: Option<u32>,
    pub(crate) max_lanes: usize,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            send_window_bytes: 16 << 20,
            socket_buffer_bytes: 4 << 20,
            client_sockets: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            handshake_deadline: Duration::from_secs(10),
            max_pending_handshakes: 256,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            accept_joins: false,
            join_deadline: Duration::from_secs(10),
            max_joins: 64,
            accepted_window_bytes: None,
            max_lanes: lanes_of(descriptors()),
        }
    }
}

impl QuicConfig {
    /// Sets what one stream may have received and not yet read. Bytes; default 4 MiB; 64 KiB to
    /// 1 GiB. It bounds one stream to a window per round trip (4 MiB at 40 ms: 100 MB/s).
    /// Worst-case memory: the connection's window, which all its streams share.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window_bytes = bytes.clamp(64 << 10, 1 << 30);
        self
    }

    /// Sets what all streams of a connection together may have received and not yet read. Bytes;
    /// default 16 MiB; 64 KiB to 1 GiB. Worst-case memory: this, per connection.
    #[must_use]
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.connection_window_bytes = bytes.clamp(64 << 10, 1 << 30);
        self
    }

    /// Sets what a connection may hold of bytes sent and not yet acknowledged. Bytes; default
    /// 16 MiB; 64 KiB to 1 GiB. Worst-case memory: this, per connection.
    #[must_use]
    pub fn send_window(mut self, bytes: u32) -> Self {
        self.send_window_bytes = bytes.clamp(64 << 10, 1 << 30);
        self
    }

    /// Sets what the kernel is asked to buffer per socket and direction; it silently gives less
    /// when `net.core.rmem_max` or `wmem_max` is lower. Bytes; default 4 MiB; 64 KiB to 64 MiB.
    /// Too small loses packets in bursts. Kernel memory, twice this per socket and direction at
    /// worst.
    #[must_use]
    pub fn socket_buffer(mut self, bytes: usize) -> Self {
        self.socket_buffer_bytes = bytes.clamp(64 << 10, 64 << 20);
        self
    }

    /// Sets over how many sockets (per IP version) dialled connections are spread. Default: the
    /// number of cores, at most 4; 1 to 16. Each costs a task and its kernel buffers once used.
    #[must_use]
    pub fn client_sockets(mut self, count: usize) -> Self {
        self.client_sockets = count.clamp(1, 16);
        self
    }

    /// Sets how long a handshake may take, dialled or accepted. Default 10 s; 100 ms to 60 s.
    #[must_use]
    pub fn handshake_deadline(mut self, deadline: Duration) -> Self {
        self.handshake_deadline =
            deadline.clamp(Duration::from_millis(100), Duration::from_secs(60));
        self
    }

    /// Sets how many accepted handshakes may be under way; more are refused, and from half of it on
    /// each address must prove itself first. Default 256; 1 to 65,536. Worst-case memory: some
    /// 100 KiB each.
    #[must_use]
    pub fn max_pending_handshakes(mut self, count: usize) -> Self {
        self.max_pending_handshakes = count.clamp(1, 65_536);
        self
    }

    /// Sets how often an idle connection shows that it is alive, and after how long a silence it is
    /// given up. Default 5 s and 15 s: two signs may be lost. 100 ms to 60 s, the silence at least
    /// twice the sign.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, silence: Duration) -> Self {
        self.keep_alive = interval.clamp(Duration::from_millis(100), Duration::from_secs(60));
        self.idle_timeout = silence.clamp(self.keep_alive * 2, Duration::from_secs(600));
        self
    }

    /// Lets servers that are about to join connect without a certificate; only a master needs it.
    /// Default: no. They come out of `accept` with [`Role::Joining`](crate::Role::Joining), one
    /// stream each and some 128 KiB at most.
    #[must_use]
    pub fn accept_joins(mut self, accept: bool) -> Self {
        self.accept_joins = accept;
        self
    }

    /// Sets how long the connection of a joining server may last, idle or not. Default 10 s; 100 ms
    /// to 60 s.
    #[must_use]
    pub fn join_deadline(mut self, deadline: Duration) -> Self {
        self.join_deadline = deadline.clamp(Duration::from_millis(100), Duration::from_secs(60));
        self
    }

    /// Sets what all streams of an *accepted* connection together may have received and not yet
    /// read. Bytes; default the same as for dialled ones; 64 KiB to 1 GiB. Who serves and is only
    /// sent requests does well with little: it is what each connection of an evil peer can make
    /// this side hold.
    #[must_use]
    pub fn accepted_window(mut self, bytes: u32) -> Self {
        self.accepted_window_bytes = Some(bytes.clamp(64 << 10, 1 << 30));
        self
    }

    /// Sets how many TCP connections peers may have here in all; one of them has a quarter of that
    /// at most. Default: half of the descriptors that this process may have when this is made, 64
    /// to 16,384; 8 to 1,048,576. Worst-case memory: some 30 KiB each, and the kernel's buffers.
    #[must_use]
    pub fn max_lanes(mut self, count: usize) -> Self {
        self.max_lanes = count.clamp(8, 1 << 20);
        self
    }

    /// How many of the lanes one peer may have.
    pub(crate) fn peer_lanes(&self) -> usize {
        (self.max_lanes / PEER_SHARE).max(2)
    }

    /// How many joins of `in_all` may be of one address: many servers may sit behind one.
    pub(super) fn join_share(in_all: usize) -> usize {
        in_all.div_ceil(2)
    }

    /// How many handshakes under way of `in_all` may be of one address.
    pub(crate) fn address_share(in_all: usize) -> usize {
        (in_all / ADDRESS_SHARE).max(1)
    }

    pub(super) fn accepted_window_bytes(&self) -> VarInt {
        VarInt::from_u32(
            self.accepted_window_bytes
                .unwrap_or(self.connection_window_bytes),
        )
    }

    pub(super) fn socket_buffer_bytes(&self) -> usize {
        self.socket_buffer_bytes
    }

    pub(super) fn client_socket_count(&self) -> usize {
        self.client_sockets
    }

    pub(super) fn member_window(&self) -> VarInt {
        VarInt::from_u32(self.connection_window_bytes)
    }

    pub(super) const fn member_streams() -> VarInt {
        VarInt::from_u32(MAX_STREAMS)
    }

    fn base(&self) -> TransportConfig {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(MAX_MTU_BYTES);
        let mut config = TransportConfig::default();
        let idle = self.idle_timeout.try_into().ok();
        config
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .receive_window(self.member_window())
            .send_window(self.send_window_bytes.into())
            .max_concurrent_bidi_streams(Self::member_streams())
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(idle)
            // The default of 333 ms makes a lost first packet cost a second.
            .initial_rtt(Duration::from_millis(100))
            .initial_mtu(INITIAL_MTU_BYTES)
            .mtu_discovery_config(Some(mtu));
        config
    }

    /// For dialled connections: the peer proves itself before it can send anything.
    pub(super) fn dialled(&self) -> Arc<TransportConfig> {
        Arc::new(self.base())
    }

    /// For accepted connections: next to nothing until the peer has proven itself.
    pub(super) fn accepted(&self) -> Arc<TransportConfig> {
        let mut config = self.base();
        config
            .receive_window(VarInt::from_u32(UNPROVEN_WINDOW_BYTES))
            .max_concurrent_bidi_streams(VarInt::from_u32(0));
        Arc::new(config)
    }
}
