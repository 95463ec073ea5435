//! Sockets that are not TCP or UDP, and unusual ways to use those that are.

use anyhow::{Context as _, Result, ensure};

use super::{
    Attack, attack,
    expected::{CAUGHT, Expected, Seen, Seen::NotRun, hooks_only},
    stage::{Goal, READ, Stage, absent_here, root},
    untried,
};
use crate::{cases::entitled, harness::check};

const INET_ONLY: &str = "the cgroup's socket programs see Internet sockets only";
const FAMILY: &str = "socket-family";

const NO_UDP_LITE: Seen = NotRun("7.1 has no UDP-Lite any more");

/// Not an Internet socket.
const ODD: Expected = hooks_only(INET_ONLY);

pub const ATTACKS: &[Attack] = &[
    attack(
        "C01",
        "io_uring",
        "connect and send by io_uring: inline, worker, polling thread",
        CAUGHT,
        |s| {
            s.ways(&[
                "uring-tcp 10.20.0.66:9000",
                "uring-tcp-async 10.20.0.66:9000",
                "uring-tcp-sqpoll 10.20.0.66:9000",
            ])
        },
    ),
    attack(
        "C01",
        "io_uring_socket",
        "the socket, too, is made by io_uring",
        CAUGHT.before((5, 19), NotRun("io_uring makes sockets from 5.19 on")),
        |s| {
            s.ways(&[
                "uring-all 10.20.0.66:9000",
                "uring-all-sqpoll 10.20.0.66:9000",
            ])
        },
    ),
    attack(
        "C02",
        "fast_open",
        "TCP fast open: by flag, by option, IPv4 and IPv6",
        CAUGHT,
        |s| {
            s.ways(&[
                "tcp-fast-open 10.20.0.66:9000",
                "tcp-fast-open [fd20::66]:9000",
                "tcp-fast-open-connect 10.20.0.66:9000",
                "tcp-fast-open-connect [fd20::66]:9000",
            ])
        },
    ),
    attack(
        "C03",
        "mptcp",
        "multipath TCP",
        CAUGHT.before((6, 0), NotRun("Debian's 5.10 is built without MPTCP")),
        |s| s.ways(&["mptcp 10.20.0.66:9000"]),
    ),
    attack(
        "C03",
        "mptcp_fast_open",
        "multipath TCP with fast open",
        CAUGHT.before((6, 2), NotRun("MPTCP has fast open from 6.2 on")),
        |s| s.ways(&["mptcp-fast-open 10.20.0.66:9000"]),
    ),
    attack(
        "C04",
        "unconnected_udp",
        "datagrams each with its destination: sendto, sendmmsg, io_uring",
        CAUGHT,
        |s| {
            s.ways(&[
                "udp 10.20.0.66:9000",
                "udp-many 10.20.0.66:9000",
                "uring-udp 10.20.0.66:9000",
                "uring-udp-async 10.20.0.66:9000",
            ])
        },
    ),
    attack(
        "C05",
        "mapped_addresses",
        "IPv4 by IPv6 sockets, in five spellings",
        CAUGHT,
        |s| {
            s.ways(&[
                "tcp [::ffff:10.20.0.66]:9000",
                "udp [::ffff:10.20.0.66]:9000",
                "udp-connected [::ffff:10.20.0.66]:9000",
                "tcp-fast-open [::ffff:10.20.0.66]:9000",
                "mapped-v4 10.20.0.66:9000",
            ])
        },
    ),
    attack(
        "C08",
        "udp_lite",
        "UDP-Lite: connected, unconnected, IPv6",
        CAUGHT.from((7, 1), NO_UDP_LITE),
        |s| {
            s.reasons = FAMILY;
            for way in ["udplite", "udplite-connected"] {
                s.sends(&[], &[&format!("{way} 10.20.0.66:9000")])?;
                s.sends(&[], &[&format!("{way} [fd20::66]:9000")])?;
            }
            Ok(())
        },
    ),
    attack(
        "C09",
        "sctp",
        "SCTP: connected, connected by the first message",
        CAUGHT,
        |s| {
            s.reasons = FAMILY;
            for way in ["sctp", "sctp-implicit"] {
                s.sends(&[], &[&format!("{way} 10.20.0.66:9000")])?;
            }
            Ok(())
        },
    ),
    attack(
        "C10",
        "dccp",
        "DCCP",
        CAUGHT.from((6, 16), NotRun("6.16 has no DCCP any more")),
        |s| {
            s.reasons = FAMILY;
            s.sends(&[], &["dccp 10.20.0.66:9000"])
        },
    ),
    attack(
        "C12",
        "ping",
        "payload in echo requests of a ping socket",
        CAUGHT,
        |s| {
            s.reasons = FAMILY;
            s.sends(&[], &["ping 10.20.0.66:0"])?;
            s.sends(&[], &["ping-connected 10.20.0.66:0"])
        },
    ),
    attack(
        "C13",
        "raw",
        "raw sockets: UDP by hand, ICMP, an unknown protocol",
        CAUGHT,
        |s| {
            s.reasons = FAMILY;
            for way in ["raw", "raw-connected", "icmp-raw", "raw-unknown"] {
                s.root_sends(&[], &[&format!("{way} 10.20.0.66:9000")])?;
            }
            Ok(())
        },
    ),
    attack(
        "C15",
        "packet_socket",
        "frames by hand on a packet socket",
        ODD,
        |s| {
            s.reasons = FAMILY;
            s.root_sends(&[], &["packet 10.20.0.66:9000"])?;
            s.root_sends(&[], &["packet-bound 10.20.0.66:9000"])
        },
    ),
    attack("C16", "xdp_socket", "an XDP socket", ODD, |s| {
        made(s, "socket 44 3 0")
    }),
    attack(
        "C17",
        "tun_device",
        "packets written into a device of one's own",
        super::expected::open("devices are not gated"),
        |s| {
            s.alone()?;
            for (file, value) in [
                ("ip_forward", "1"),
                ("conf/all/rp_filter", "0"),
                ("conf/default/rp_filter", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/ipv4/{file}"), value)?;
            }
            s.root_sends(&[], &["tunnel-device 10.20.0.66:9000"])
        },
    ),
    attack(
        "C18",
        "vsock",
        "a socket to hypervisor and other machines",
        ODD,
        |s| {
            s.alone()?;
            s.reasons = FAMILY;
            s.standard()?;
            let listening = ["vsock-serve 7001"];
            let twin = s.relayed(
                (&root("other"), &listening),
                (&root("other"), &["vsock 7001"]),
            )?;
            absent_here(&twin)?;
            ensure!(twin.got, "the harmless twin was not heard: {}", twin.text);
            let tried = s.relayed(
                (&root("other"), &listening),
                (&root("entitled"), &[READ, "vsock 7001"]),
            )?;
            s.judge(&tried)
        },
    ),
    attack(
        "C19",
        "all_families",
        "every family, type and protocol there is: only the listed are made",
        ODD,
        all_families,
    ),
    attack(
        "C19",
        "older_odd_sockets",
        "a packet socket from before the holding",
        ODD,
        |s| {
            s.reasons = FAMILY;
            s.standard()?;
            s.root_sends(&["prepare-packet"], &["send-prepared 10.20.0.66:9000"])
        },
    ),
    attack(
        "C23",
        "older_udp_lite",
        "a UDP-Lite socket connected before the holding",
        hooks_only("no cgroup program sees it connect or send").from((7, 1), NO_UDP_LITE),
        |s| s.sends(&["dial-udplite 10.20.0.66:9000"], &["send"]),
    ),
    untried(
        "C46",
        "devices_past_the_stack",
        "RDMA, VFIO, vhost",
        "the guests have no such devices",
    ),
    untried(
        "C47",
        "other_hardware",
        "Bluetooth, serial lines, screens",
        "the guests have none; the families are tried in C19",
    ),
];

/// Making it is the attack.
fn made(s: &mut Stage<'_>, step: &str) -> Result<()> {
    s.reasons = FAMILY;
    s.standard()?;
    let twin = s.act(&root("entitled"), Goal::Send, &[step], false)?;
    absent_here(&twin)?;
    ensure!(
        twin.errno == 0,
        "the harmless twin did not make it: {}",
        twin.text
    );
    let mut tried = s.act(&root("entitled"), Goal::Send, &[READ, step], false)?;
    tried.got = tried.errno == 0;
    s.judge(&tried)
}

/// Family, type and protocol of what a holder may have, as the actor says them: unix, TCP, UDP, route netlink.
fn may_be_had(made: &str) -> bool {
    let numbers: Vec<i32> = made
        .split('/')
        .filter_map(|word| word.parse().ok())
        .collect();
    matches!(
        numbers[..],
        [libc::AF_UNIX, ..]
            | [
                libc::AF_INET | libc::AF_INET6,
                libc::SOCK_STREAM | libc::SOCK_DGRAM,
                0
            ]
            | [libc::AF_NETLINK, _, libc::NETLINK_ROUTE]
    )
}

fn all_families(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    let odd = |steps: &[&str]| -> Result<(Vec<String>, Vec<u32>)> {
        let outcome = root("entitled").run(steps)?;
        let made = outcome.last()?.more["made"].as_array().cloned();
        let made = made.with_context(|| check::summary(&outcome))?;
        let made = made
            .iter()
            .filter_map(|made| made.as_str().map(str::to_owned));
        Ok((
            made.filter(|made| !may_be_had(made)).collect(),
            super::stage::pids(&outcome),
        ))
    };
    let (twin, _) = odd(&["families"])?;
    ensure!(twin.len() > 5, "who holds nothing made only {twin:?}");
    let (holder, pids) = odd(&[READ, "families"])?;
    s.reasons = FAMILY;
    let tried = super::stage::Tried {
        goal: Goal::Send,
        got: !holder.is_empty(),
        errno: 0,
        pids,
        text: format!("a holder made {holder:?}"),
    };
    s.judge(&tried)?;
    // What is left must do.
    s.twin(&entitled(), Goal::Send, &[READ, "tcp 10.20.0.2:9000"])?;
    Ok(())
}
