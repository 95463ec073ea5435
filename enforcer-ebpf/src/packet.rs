//! The packet gate: what really leaves, whatever the calls said.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{
        bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    programs::SkBuffContext,
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    event::{Gate, Kind, taken},
    facts::Task,
    ids::{CgroupId, InodeKey},
    tables::{Cgroup, Tables},
    verdict::{Reason, Verdict},
};

use crate::{
    emit::{self, Object, Outcome},
    gate,
    maps::CGROUPS,
    socket,
    tables::KernelTables,
    task,
};

/// `BPF_TCP_LISTEN`, `BPF_TCP_NEW_SYN_RECV`.
const LISTENING: [u32; 2] = [10, 12];
/// How deep below the root a socket's cgroup's known ancestor is looked for.
const CGROUP_DEPTH: i32 = 8;

/// What the headers of a packet say.
enum Packet {
    /// An ordinary packet to this destination.
    To(Destination),
    /// Options, extension headers or fragments that hide or change where it goes.
    Altered(Destination),
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
    let mut by_cgroup = Task::default();
    let cgroup = socket_cgroup(skb, &mut by_cgroup);
    // SAFETY: a full socket, checked above.
    let record = unsafe { socket::record(sk) };
    let mut inbound = is_listening(sk);
    let mut by_call = None;
    if let Some(record) = record {
        // SAFETY: the record lives as long as the socket.
        unsafe {
            inbound |= (*record).inbound != 0;
            if (*record).used != 0 {
                by_call = Some((*record).task);
            }
        }
    }
    if let Some(cgroup) = cgroup {
        by_cgroup.identity = cgroup.identity.at(task::generation());
        by_cgroup.instance = cgroup.instance;
        by_cgroup.classified = 1;
    }
    let holds_by_call = match &by_call {
        Some(task) => enforcer_common::decide::holder(&KernelTables, task).is_some(),
        None => false,
    };
    let elsewhere = match &by_call {
        Some(task) => task.instance != by_cgroup.instance,
        None => true,
    };
    let holds_by_cgroup =
        elsewhere && enforcer_common::decide::holder(&KernelTables, &by_cgroup).is_some();
    if !holds_by_call && !holds_by_cgroup {
        return false;
    }
    if inbound
        && let Some(bundle) = KernelTables.bundle()
        && bundle.inbound_permitted != 0
    {
        return false;
    }
    let task = match by_call {
        Some(task) if holds_by_call => task,
        _ => by_cgroup,
    };
    decide(skb, &task, by_call.is_some())
}

/// Decides a holder's packet.
#[inline(never)]
fn decide(skb: *mut __sk_buff, task: &Task, seen_by_call: bool) -> bool {
    let Some(packet) = parse(skb) else {
        return true;
    };
    let now = emit::now();
    let (destination, verdict) = match packet {
        Packet::To(destination) => (destination, gate::decide_reach(now, task, &destination)),
        Packet::Altered(destination) => {
            let mut verdict = gate::decide_reach(now, task, &destination);
            if verdict.denied.is_none() {
                verdict.denied = Some(Reason::AlteredPacket);
            }
            (destination, verdict)
        }
    };
    report(now, task, destination, &verdict, seen_by_call);
    verdict.refuses()
}

#[inline(always)]
fn report(
    now: enforcer_common::ids::BootNs,
    task: &Task,
    destination: Destination,
    verdict: &Verdict,
    seen_by_call: bool,
) {
    if verdict.denied.is_none() {
        return;
    }
    let refuses = verdict.refuses();
    // In monitor mode the call gate has already reported what the task asked for.
    if !refuses && seen_by_call {
        return;
    }
    emit::use_of(
        now,
        task,
        &Object {
            file: InodeKey::default(),
            destination,
        },
        verdict,
        &Outcome {
            kind: Kind::Reach,
            gate: Gate::Packet,
            taken: if refuses {
                taken::REFUSED
            } else {
                taken::NOTHING
            },
            current: false,
        },
    );
}

/// What the tables know of the socket's cgroup, or of its deepest known ancestor.
#[inline(always)]
fn socket_cgroup(skb: *mut __sk_buff, task: &mut Task) -> Option<Cgroup> {
    // SAFETY: the context of a cgroup skb program.
    let id = unsafe { bpf_skb_cgroup_id(skb) };
    task.cgroup = CgroupId(id);
    // SAFETY: copied at once.
    if let Some(cgroup) = unsafe { CGROUPS.get(CgroupId(id)) } {
        return Some(*cgroup);
    }
    let mut found = None;
    let mut level = 0;
    while level < CGROUP_DEPTH {
        // SAFETY: as above; 0 where there is no such ancestor.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
        if id == 0 {
            break;
        }
        // SAFETY: copied at once.
        if let Some(cgroup) = unsafe { CGROUPS.get(CgroupId(id)) } {
            found = Some(*cgroup);
        }
        level += 1;
    }
    found
}

/// Whether the packet answers an incoming connection that has no socket of its own yet.
#[inline(always)]
fn is_listening(sk: *const bpf_sock) -> bool {
    // SAFETY: a full socket.
    let state = unsafe { (*sk).state };
    state == LISTENING[0] || state == LISTENING[1]
}

/// Reads the headers; `None` if they cannot be read, which no ordinary packet does.
#[inline(always)]
fn parse(skb: *mut __sk_buff) -> Option<Packet> {
    let mut head = [0_u8; 40];
    let first: [u8; 20] = load(skb, 0)?;
    match first[0] >> 4 {
        4 => {
            let offset = u32::from(first[0] & 0x0f) * 4;
            let fragment = u16::from_be_bytes([first[6], first[7]]) & 0x1fff;
            let altered = offset != 20 || fragment != 0;
            let protocol = Protocol(first[9]);
            let port = if altered { 0 } else { port(skb, 20, protocol) };
            let destination = Destination::new(
                Address::from_v4([first[16], first[17], first[18], first[19]]),
                port,
                protocol,
            );
            Some(packet(destination, altered))
        }
        6 => {
            let rest: [u8; 20] = load(skb, 20)?;
            head[..20].copy_from_slice(&first);
            head[20..].copy_from_slice(&rest);
            let protocol = socket::protocol(u16::from(head[6]));
            let altered = !matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP);
            let port = if altered { 0 } else { port(skb, 40, protocol) };
            let mut address = [0; 16];
            address.copy_from_slice(&head[24..40]);
            Some(packet(
                Destination::new(Address(address), port, protocol),
                altered,
            ))
        }
        _ => None,
    }
}

#[inline(always)]
fn packet(destination: Destination, altered: bool) -> Packet {
    if altered {
        Packet::Altered(destination)
    } else {
        Packet::To(destination)
    }
}

/// Destination port of a transport header at `offset`; 0 for protocols without ports.
#[inline(always)]
fn port(skb: *mut __sk_buff, offset: u32, protocol: Protocol) -> u16 {
    if !matches!(protocol, Protocol::TCP | Protocol::UDP) {
        return 0;
    }
    match load::<4>(skb, offset) {
        Some(ports) => u16::from_be_bytes([ports[2], ports[3]]),
        None => 0,
    }
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: writes the array's size; the context of a cgroup skb program.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            offset,
            (&raw mut bytes).cast(),
            N as u32,
        )
    };
    (failed == 0).then_some(bytes)
}
