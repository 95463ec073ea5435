//! The packet gate: what really leaves, whatever the calls said.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::{
        bpf_setsockopt, bpf_sock_ops_cb_flags_set,
        generated::{
            bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes,
        },
    },
    programs::{SkBuffContext, SockOpsContext},
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    branchless::reload,
    decide,
    event::{Gate, taken},
    facts::Task,
    ids::{CgroupId, Tgid},
    tables::Tables,
    verdict::{Reason, Verdict},
};

use crate::{
    emit::{self, Object},
    gate, presence,
    socket::{self, Handle},
    tables::{KernelTables, blur},
    task,
};

/// `BPF_TCP_LISTEN`, `BPF_TCP_NEW_SYN_RECV`.
const LISTENING: [u32; 2] = [10, 12];

/// What the headers of a packet say about where it goes.
mod headers {
    /// An ordinary packet.
    pub const PLAIN: u32 = 0;
    /// Options, extension headers or fragments that hide or change where it goes.
    pub const ALTERED: u32 = 1;
    /// They cannot be read, which no ordinary packet's cannot.
    pub const UNREADABLE: u32 = 2;
}

/// By whose facts a packet is judged, and whether it answers a client: what [`judge`] is told, in one word.
mod by {
    /// Those of the cgroup that the socket was made in.
    pub const CGROUP: u64 = 0;
    /// Those that the last call on the socket left.
    pub const CALL: u64 = 1;
    /// The connection was accepted from a client.
    pub const ANSWER: u64 = 2;
    /// A call on the socket was seen, and reported.
    pub const SEEN: u64 = 4;
}

/// Decides one outgoing packet. `true` drops it.
#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> bool {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    let Some((sk, socket)) = sender(skb) else {
        return false;
    };
    if !concerns(skb, socket) {
        return false;
    }
    if !is_listening(sk) && is_permitted(skb, socket) {
        return false;
    }
    let by_cgroup = holder_by_cgroup(skb);
    let mut how = u64::from(is_listening(sk)) * by::ANSWER;
    let mut by_call: Option<&Task> = None;
    if let Some(record) = socket.record() {
        // SAFETY: the record lives as long as the program.
        let record = unsafe { &*record };
        if record.inbound != 0 {
            how = by::ANSWER;
        }
        if record.used != 0 {
            by_call = Some(&record.task);
        }
    }
    // The facts of the last call, and where the socket was born somewhere else or not called yet, its
    // cgroup: whichever denies counts.
    let mut refused = false;
    let mut elsewhere = true;
    let mut held = false;
    if let Some(task) = by_call {
        elsewhere = task.instance.0 != by_cgroup & !HOLDS;
        if holds(task) {
            held = true;
            refused = judge(skb, how | by::CALL | by::SEEN) != 0;
        }
        how |= by::SEEN;
    }
    if elsewhere && !refused && by_cgroup & HOLDS != 0 {
        held = true;
        refused = judge(skb, how | by::CGROUP) != 0;
    }
    // SAFETY: a full socket.
    let is_tcp = unsafe { (*sk).protocol } == u32::from(Protocol::TCP.0);
    is_tcp && condemned(socket, refused, held) || refused
}

/// The socket that sends a packet; `None` if there is none with a state of its own.
#[inline(always)]
fn sender(skb: *mut __sk_buff) -> Option<(*const bpf_sock, Handle)> {
    // SAFETY: the context of a cgroup skb program.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: not null; the result is checked before use.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a full socket; the context of a cgroup skb program.
    let socket = unsafe { Handle::new(sk, || bpf_get_socket_cookie(skb.cast())) };
    Some((sk, socket))
}

/// Set in the result of [`holder_by_cgroup`] if the instance holds anything; no cgroup id is that large.
const HOLDS: u64 = 1 << 63;

/// Whether a packet may be a holder's: its cgroup's instance may hold something, or a call has left its facts.
#[inline(always)]
fn concerns(skb: *mut __sk_buff, socket: Handle) -> bool {
    // SAFETY: the context of a cgroup skb program.
    let cgroup = CgroupId(unsafe { bpf_skb_cgroup_id(skb) });
    // Nobody's process has the number 0.
    presence::may_hold(Tgid(0), cgroup) || socket.record().is_some()
}

/// Whether a packet goes where the last call on its socket was let go, and all that this depended on is as it was. In a
/// frame of its own.
#[inline(never)]
fn is_permitted(skb: *mut __sk_buff, socket: Handle) -> bool {
    let Some(record) = socket.record() else {
        return false;
    };
    // SAFETY: the record lives as long as the program.
    let record = unsafe { &*record };
    // SAFETY: the context of a cgroup skb program.
    let cgroup = CgroupId(unsafe { bpf_skb_cgroup_id(skb) });
    // Whoever was born elsewhere is judged by that as well.
    let is_here = record.task.cgroup == cgroup && record.task.instance.0 != 0;
    if record.seal == 0 || record.inbound != 0 || record.condemned != 0 || !is_here {
        return false;
    }
    let mut to = Destination::NONE;
    parse(skb, by::CALL, &mut to) == headers::PLAIN
        && record.seal == gate::seal(&record.task, &to, gate::moment(), record.verdict)
}

/// The instance of the cgroup that the socket was made in, and [`HOLDS`]. In a frame of its own.
#[inline(never)]
fn holder_by_cgroup(skb: *mut __sk_buff) -> u64 {
    let mut task = Task::NOBODY;
    fill_by_cgroup(skb, &mut task);
    task.instance.0 | u64::from(decide::holds(&KernelTables, &task)) << 63
}

/// [`decide::holds`] in a frame of its own.
#[inline(never)]
fn holds(task: &Task) -> bool {
    presence::may_hold(task.tgid, task.cgroup) && decide::holds(&KernelTables, task)
}

/// Whoever is in the cgroup that the socket was made in.
#[inline(always)]
fn fill_by_cgroup(skb: *mut __sk_buff, task: &mut Task) {
    // SAFETY: the context of a cgroup skb program.
    task.cgroup = CgroupId(unsafe { bpf_skb_cgroup_id(skb) });
    task::classify(task);
}

/// Keeps in mind that a TCP connection had a packet refused, and refuses the rest once its holder has ended:
/// the kernel goes on sending what is queued.
#[inline(always)]
fn condemned(socket: Handle, refused: bool, held: bool) -> bool {
    if refused {
        if let Some(record) = socket.record_or_new() {
            // SAFETY: the record lives as long as the program.
            unsafe { (*record).condemned = 1 };
        }
        return true;
    }
    match socket.record() {
        // SAFETY: as above.
        Some(record) => !held && unsafe { (*record).condemned } != 0,
        None => false,
    }
}

/// Decides a holder's packet; `how` is made of [`by`]. A global function, so that it is verified once. 1 drops it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(skb: *mut __sk_buff, how: u64) -> u64 {
    let Some(bundle) = KernelTables.bundle() else {
        return 0;
    };
    let mut task = Task::NOBODY;
    if how & by::CALL == 0 {
        fill_by_cgroup(skb, &mut task);
        task.identity = task::with_origin(task.identity, 0);
    } else {
        match sender(skb).and_then(|(_, socket)| socket.record()) {
            // SAFETY: the record lives as long as the program.
            Some(record) => task = unsafe { (*record).task },
            None => return 1,
        }
    }
    let mut to = Destination::NONE;
    let headers = parse(skb, how, &mut to);
    if headers == headers::UNREADABLE {
        return 1;
    }
    // The ways to here wrote constants that differ, and each would be walked on from here by itself.
    let how = how | reload(&bundle.zero);
    let headers = headers | reload(&bundle.zero) as u32;
    blur(&mut task, bundle);
    blur(&mut to, bundle);
    let now = emit::now();
    let mut verdict = decide::reach(&KernelTables, now, &task, &to);
    if headers == headers::ALTERED && verdict.governed() && verdict.reason() == 0 {
        verdict = verdict.because(Reason::AlteredPacket);
    }
    // Without an entitlement that says whom it serves, the bundle's default holds.
    let unbounded = how & by::ANSWER != 0 && verdict.reason() != Reason::OutsideDestination as u8;
    if unbounded && bundle.inbound_permitted != 0 {
        return 0;
    }
    report(now, &task, &to, verdict, how & by::SEEN != 0);
    u64::from(verdict.refuses())
}

#[inline(always)]
fn report(
    now: enforcer_common::ids::BootNs,
    task: &Task,
    destination: &Destination,
    verdict: Verdict,
    seen_by_call: bool,
) {
    if verdict.reason() == 0 {
        return;
    }
    let refuses = verdict.refuses();
    // In monitor mode the call gate has already reported what the task asked for.
    if !refuses && seen_by_call {
        return;
    }
    let taken = if refuses {
        taken::REFUSED
    } else {
        taken::NOTHING
    };
    let object = Object::destination(destination);
    emit::use_of(now, task, object, verdict, Gate::Packet, taken, false);
}

/// Whether the packet answers an incoming connection that has no socket of its own yet.
#[inline(always)]
fn is_listening(sk: *const bpf_sock) -> bool {
    // SAFETY: a full socket.
    let state = unsafe { (*sk).state };
    state == LISTENING[0] || state == LISTENING[1]
}

/// Reads where a packet goes, as an answer if `how` says so. Returns one of [`headers`].
#[inline(never)]
fn parse(skb: *mut __sk_buff, how: u64, to: &mut Destination) -> u32 {
    let version: u8 = load(skb, 0);
    let (address, protocol, altered, transport) = match version >> 4 {
        4 => {
            let fragment = u16::from_be(load(skb, 6)) & 0x1fff;
            let protocol = Protocol(load(skb, 9));
            // A header longer than 20 bytes has options. (The kernel cuts packets into fragments after this gate.)
            let altered = version & 0x0f != 5 || fragment != 0 || is_unknown(protocol);
            (Address::from_v4(load(skb, 16)), protocol, altered, 20)
        }
        6 => {
            let next: u8 = load(skb, 6);
            let protocol = socket::protocol(u16::from(next));
            let address = Address {
                high: load(skb, 24),
                low: load(skb, 32),
            };
            (address, protocol, is_unknown(protocol), 40)
        }
        _ => return headers::UNREADABLE,
    };
    let mut ports = [0_u16; 2];
    if !altered && matches!(protocol, Protocol::TCP | Protocol::UDP) {
        let both: u32 = load(skb, transport);
        ports = [u16::from_be(both as u16), u16::from_be((both >> 16) as u16)];
    }
    *to = if how & by::ANSWER != 0 {
        Destination::answer(address, ports[0], protocol)
    } else {
        Destination::new(address, ports[1], protocol)
    };
    if altered {
        headers::ALTERED
    } else {
        headers::PLAIN
    }
}

/// Whether no holder may send by this protocol, extension headers of IPv6 among them.
#[inline(always)]
fn is_unknown(protocol: Protocol) -> bool {
    !matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP)
}

/// Reads a number as it stands in the packet. Past its end there are zeroes, which no header has: version 0,
/// address and port 0.
#[inline(always)]
fn load<T: Copy + Default>(skb: *mut __sk_buff, offset: u32) -> T {
    let mut number = T::default();
    // SAFETY: writes the number's size; the context of a cgroup skb program.
    unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            offset,
            (&raw mut number).cast(),
            size_of::<T>() as u32,
        );
    }
    number
}

/// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`.
const ACTIVE_ESTABLISHED: u32 = 4;
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`.
const PASSIVE_ESTABLISHED: u32 = 5;
/// `BPF_SOCK_OPS_RTO_CB`: sent bytes were not confirmed in time.
const RETRANSMIT: u32 = 8;
/// `BPF_SOCK_OPS_RTO_CB_FLAG`.
const TELL_RETRANSMIT: i32 = 1;
/// `IPPROTO_TCP`, `TCP_USER_TIMEOUT`.
const USER_TIMEOUT: (i32, i32) = (6, 18);

/// Follows TCP connections. One with a refused packet never gets it confirmed; when the kernel is about to send it
/// again, it is told not to wait any longer, and closes the connection at the next time (`ETIMEDOUT`).
#[inline(always)]
pub fn tcp_state(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    let op = ctx.op();
    // The kernel asks of a connection a dozen times, and mostly for something else.
    if op != ACTIVE_ESTABLISHED && op != PASSIVE_ESTABLISHED && op != RETRANSMIT {
        return;
    }
    // SAFETY: the context of a sock-ops program; the socket is checked.
    unsafe {
        let sk = (*ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        let socket = Handle::new(sk, || bpf_get_socket_cookie(ops.cast()));
        if op == ACTIVE_ESTABLISHED || op == PASSIVE_ESTABLISHED {
            bpf_sock_ops_cb_flags_set(ops, TELL_RETRANSMIT);
        }
        if op == PASSIVE_ESTABLISHED
            && let Some(record) = socket.record_or_new()
        {
            (*record).inbound = 1;
        }
        if op == RETRANSMIT
            && let Some(record) = socket.record()
            && (*record).condemned != 0
        {
            let mut milliseconds: u32 = 1;
            let (level, option) = USER_TIMEOUT;
            bpf_setsockopt(
                ops.cast(),
                level,
                option,
                (&raw mut milliseconds).cast(),
                size_of::<u32>() as i32,
            );
        }
    }
}
