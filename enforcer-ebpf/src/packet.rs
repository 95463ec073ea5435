//! The packet gate: what really leaves, whatever the calls said.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    programs::SkBuffContext,
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    event::{Gate, taken},
    facts::Task,
    ids::CgroupId,
    tables::Tables,
    verdict::{Reason, Verdict},
};

use crate::{
    emit::{self, Object},
    gate,
    socket::{self, Handle},
    tables::KernelTables,
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

/// Decides one outgoing packet. `true` drops it.
#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> bool {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup skb program.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null; the result is checked before use.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return false;
    }
    let mut by_cgroup = Task {
        // SAFETY: the context of a cgroup skb program.
        cgroup: CgroupId(unsafe { bpf_skb_cgroup_id(skb) }),
        ..Task::default()
    };
    task::classify(&mut by_cgroup);
    // SAFETY: a full socket, checked above; the context of a cgroup skb program.
    let socket = unsafe { Handle::new(sk, || bpf_get_socket_cookie(skb.cast())) };
    let record = socket.record();
    let mut inbound = is_listening(sk);
    let mut by_call: Option<&Task> = None;
    if let Some(record) = record {
        // SAFETY: the record lives as long as the socket, which sends this packet.
        let record = unsafe { &*record };
        inbound |= record.inbound != 0;
        if record.used != 0 {
            by_call = Some(&record.task);
        }
    }
    if inbound
        && let Some(bundle) = KernelTables.bundle()
        && bundle.inbound_permitted != 0
    {
        return false;
    }
    // The facts of the last call, and where the socket was born somewhere else or not called yet, its
    // cgroup: whichever denies counts.
    let mut refused = false;
    let mut elsewhere = true;
    let mut held = false;
    if let Some(task) = by_call {
        elsewhere = task.instance != by_cgroup.instance;
        if enforcer_common::decide::holds(&KernelTables, task) {
            held = true;
            refused = decide(skb, task, true);
        }
    }
    if elsewhere && !refused && enforcer_common::decide::holds(&KernelTables, &by_cgroup) {
        held = true;
        refused = decide(skb, &by_cgroup, by_call.is_some());
    }
    // SAFETY: a full socket, checked above.
    let is_tcp = unsafe { (*sk).protocol } == u32::from(Protocol::TCP.0);
    is_tcp && condemned(socket, refused, held) || refused
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

/// Decides a holder's packet.
#[inline(never)]
fn decide(skb: *mut __sk_buff, task: &Task, seen_by_call: bool) -> bool {
    let mut destination = Destination::NONE;
    let headers = parse(skb, &mut destination);
    if headers == headers::UNREADABLE {
        return true;
    }
    let now = emit::now();
    let mut verdict = gate::decide_reach(now, task, &destination);
    if headers == headers::ALTERED && verdict.governed() && verdict.reason() == 0 {
        verdict = verdict.because(Reason::AlteredPacket);
    }
    report(now, task, &destination, verdict, seen_by_call);
    verdict.refuses()
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
    let object = Object::Destination(destination);
    emit::use_of(now, task, object, verdict, Gate::Packet, taken, false);
}

/// Whether the packet answers an incoming connection that has no socket of its own yet.
#[inline(always)]
fn is_listening(sk: *const bpf_sock) -> bool {
    // SAFETY: a full socket.
    let state = unsafe { (*sk).state };
    state == LISTENING[0] || state == LISTENING[1]
}

/// Reads where a packet goes. Returns one of [`headers`].
#[inline(never)]
fn parse(skb: *mut __sk_buff, destination: &mut Destination) -> u32 {
    match read_headers(skb) {
        Some((to, headers)) => {
            *destination = to;
            headers
        }
        None => headers::UNREADABLE,
    }
}

#[inline(always)]
fn read_headers(skb: *mut __sk_buff) -> Option<(Destination, u32)> {
    let version: u8 = load(skb, 0);
    let (address, protocol, altered, transport) = match version >> 4 {
        4 => {
            let fragment = u16::from_be(load(skb, 6)) & 0x1fff;
            let protocol = Protocol(load(skb, 9));
            // A header longer than 20 bytes has options.
            let altered = version & 0x0f != 5 || fragment != 0;
            (Address::from_v4(load(skb, 16)), protocol, altered, 20)
        }
        6 => {
            let next: u8 = load(skb, 6);
            let protocol = socket::protocol(u16::from(next));
            let altered = !matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP);
            let address = Address {
                high: load(skb, 24),
                low: load(skb, 32),
            };
            (address, protocol, altered, 40)
        }
        _ => return None,
    };
    if altered {
        return Some((Destination::new(address, 0, protocol), headers::ALTERED));
    }
    let port = port(skb, transport, protocol);
    Some((Destination::new(address, port, protocol), headers::PLAIN))
}

/// Destination port of a transport header at `offset`; 0 for protocols without ports.
#[inline(always)]
fn port(skb: *mut __sk_buff, offset: u32, protocol: Protocol) -> u16 {
    if !matches!(protocol, Protocol::TCP | Protocol::UDP) {
        return 0;
    }
    u16::from_be(load(skb, offset + 2))
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
