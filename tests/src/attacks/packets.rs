//! Packets that go elsewhere than the call said, or cannot be read.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    Attack, attack,
    expected::{CAUGHT, Seen::NotRun, Tier, open},
    stage::{Goal, READ, Stage, root, standard_bundle},
    untried,
};
use crate::{
    bpf,
    cases::{entitled, other, standard::DESTINATIONS},
    harness::{Actor, Bundle, Cgroup, Refused, check::Expect},
    peer,
};

pub const ATTACKS: &[Attack] = &[
    attack(
        "C07",
        "this_host",
        "0.0.0.0, :: and 127/8 mean this machine",
        CAUGHT,
        |s| {
            for (at, to) in [
                ("127.0.0.1:7002", "0.0.0.0:7002"),
                ("127.0.0.1:7003", "127.9.9.9:7003"),
                ("[::1]:7004", "[::]:7004"),
                ("10.20.0.1:7005", "10.20.0.1:7005"),
            ] {
                // The whole of 127/8 is where a wildcard listens.
                let at = if to.starts_with("127.9") {
                    "0.0.0.0:7003"
                } else {
                    at
                };
                s.standard()?;
                s.tells(&[&format!("serve {at}")], &format!("tcp {to}"))
                    .with_context(|| to.to_owned())?;
            }
            Ok(())
        },
    ),
    attack(
        "C20",
        "source_route",
        "IPv4 source routes by option and by control message",
        CAUGHT,
        |s| {
            let to = "10.20.0.2:9000 10.20.0.66:9000";
            for way in ["lsrr", "lsrr-cmsg", "lsrr-tcp"] {
                s.root_sends(&[], &[&format!("{way} {to}")])?;
            }
            Ok(())
        },
    ),
    attack(
        "C21",
        "routing_header",
        "IPv6 routing headers, also set before the holding",
        CAUGHT,
        |s| {
            let to = "[fd20::2]:9000 [fd20::66]:9000";
            s.sends(&[], &[&format!("routing 4 {to}")])?;
            s.sends(&[], &[&format!("routing-tcp 4 {to}")])?;
            s.sends(&[&format!("routing-preset 4 {to}")], &["send-preset"])?;
            if s.shared {
                // Not every kernel is built with the other kind.
                return Ok(());
            }
            s.sends(&[], &[&format!("routing 2 {to}")])
        },
    ),
    attack(
        "C22",
        "corked",
        "queued for one address while clean, sent off naming another, or none",
        CAUGHT,
        |s| {
            s.sends(&["cork 10.20.0.66:9000"], &["uncork 10.20.0.2:9000"])?;
            s.sends(&["cork 10.20.0.66:9000"], &["uncork -"])?;
            s.sends(&["cork [fd20::66]:9000"], &["uncork [fd20::2]:9000"])
        },
    ),
    attack(
        "C32",
        "dns_tunnel",
        "bytes in questions to the resolver that the baseline allows",
        open("what is asked of an allowed resolver is not looked at"),
        |s| {
            s.standard()?;
            s.twin(&other(), Goal::Send, &["udp 10.20.0.53:9000"])?;
            s.attack(&entitled(), Goal::Send, &[READ, "udp 10.20.0.53:9000"])
        },
    ),
    untried(
        "C33",
        "covert_fields",
        "ports, identifiers and timing on allowed flows",
        "out of scope: there is nothing to refuse",
    ),
    attack(
        "C34",
        "neighbours",
        "multicast and broadcast; and no question for a refused address's neighbour",
        CAUGHT,
        neighbours,
    ),
    attack(
        "C35",
        "output",
        "what a holder writes to its standard output",
        open("outputs and logs are not followed"),
        |s| {
            s.standard()?;
            s.works(&other(), &["say /srv/t/nil"])?;
            let said = s.works(&entitled(), &["say /srv/t/key"])?;
            let text = said.last()?.more["text"].to_string();
            ensure!(text.contains("secret"), "the holder's output has {text}");
            Ok(())
        },
    ),
    attack(
        "C36",
        "allowed_destination",
        "somebody else's account at an allowed destination",
        open("what is said to a destination is not looked at"),
        |s| {
            s.standard()?;
            s.twin(&other(), Goal::Send, &["tcp-fast-open 10.20.0.2:9000"])?;
            s.attack(
                &entitled(),
                Goal::Send,
                &[READ, "tcp-fast-open 10.20.0.2:9000"],
            )
        },
    ),
    attack(
        "C37",
        "forged_name",
        "a workload's own idea of what a name means",
        CAUGHT,
        forged_name,
    ),
    attack(
        "C39",
        "rewritten_by_a_program",
        "another program in the workload's cgroup rewrites the destination",
        CAUGHT,
        rewritten,
    ),
    attack(
        "C40",
        "embedded_addresses",
        "IPv4 addresses within IPv6: NAT64, 6to4, compatible",
        CAUGHT,
        embedded,
    ),
    attack(
        "C41",
        "tunnel_of_the_host",
        "through a tunnel that ends elsewhere than the packets in it say",
        open("a tunnel's far end is the host's routing"),
        |s| {
            s.alone()?;
            let tunnel = "tunnel9";
            peer::ip(&format!(
                "tunnel add {tunnel} mode ipip remote 10.20.0.66 local 10.20.0.1"
            ))?;
            peer::ip(&format!("link set {tunnel} up"))?;
            peer::ip(&format!("route add 10.30.0.2 dev {tunnel}"))?;
            let bundle = standard_bundle()?.entitlement(
                "E-tunnel",
                "app",
                "key",
                "destinations: [{cidr: 10.30.0.2, ports: [9000]}]",
            );
            let result = (|| {
                s.on(&bundle)?;
                s.twin(&other(), Goal::Send, &["udp 10.30.0.2:9000"])?;
                s.attack(&entitled(), Goal::Send, &[READ, "udp 10.30.0.2:9000"])
            })();
            peer::ip(&format!("link del {tunnel}"))?;
            result
        },
    ),
    attack(
        "C43",
        "metadata_spellings",
        "where clouds hand out secrets, in every spelling",
        CAUGHT.on(
            Tier::Fanotify,
            NotRun("endpoints are no credentials on this tier, and status says so"),
        ),
        metadata,
    ),
    untried(
        "C48",
        "mirrored_by_root",
        "packets copied elsewhere by nftables or tc",
        "host root rewrites packets after every gate",
    ),
    attack(
        "C49",
        "hard_to_read",
        "fragments, a lone fragment, an extension header",
        CAUGHT,
        |s| {
            s.sends(&[], &["large 10.20.0.66:9000"])?;
            s.sends(&[], &["large [fd20::66]:9000"])?;
            s.root_sends(&[], &["fragment 10.20.0.66:9000"])?;
            s.root_sends(&[], &["options [fd20::66]:9000"])
        },
    ),
    attack(
        "C49",
        "fragments_at_home",
        "fragments to where a holder may, which must arrive",
        CAUGHT,
        |s| {
            s.standard()?;
            s.twin(&entitled(), Goal::Send, &[READ, "large 10.20.0.2:9000"])?;
            s.twin(&entitled(), Goal::Send, &[READ, "large [fd20::2]:9000"])?;
            s.attack(&entitled(), Goal::Send, &[READ, "large 10.20.0.66:9000"])
        },
    ),
    untried(
        "C50",
        "past_the_egress",
        "packets that no egress program sees",
        "tried as C15 and C17; resets and the like carry nothing",
    ),
];

fn neighbours(s: &mut Stage<'_>) -> Result<()> {
    for way in [
        "udp 224.0.0.251:5353",
        "broadcast 10.20.0.255:9000",
        "broadcast 255.255.255.255:9000",
    ] {
        s.standard()?;
        let to_link = peer::ip("route replace default dev near0");
        s.twin(&other(), Goal::Send, &[way])?;
        s.attack(&entitled(), Goal::Send, &[READ, way])?;
        to_link?;
    }
    let asked = |s: &mut Stage<'_>, address: &str| -> Result<bool> {
        Ok(s.scene.outside.asked()?.contains_key(address))
    };
    // Nobody answers, so that only the question is of interest.
    s.works(&other(), &["udp 10.20.0.98:9000"])?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    ensure!(
        asked(s, "10.20.0.98")?,
        "for the harmless twin nobody asked"
    );
    s.attack(&entitled(), Goal::Send, &[READ, "udp 10.20.0.99:9000"])?;
    ensure!(!asked(s, "10.20.0.99")?, "a refused address was asked for");
    Ok(())
}

/// The daemon resolves names by itself; what a workload has in its files is nothing to it.
fn forged_name(s: &mut Stage<'_>) -> Result<()> {
    let bundle = Bundle::of_key("destinations: [{host: good.example, ports: [9000]}]");
    s.on(&bundle)?;
    fs::write("/srv/t/hosts", "10.20.0.66 good.example\n")?;
    let steps = [
        "private-mounts",
        "bind /srv/t/hosts /etc/hosts",
        READ,
        "tcp 10.20.0.66:9000",
    ];
    s.twin(
        &root("entitled"),
        Goal::Send,
        &["private-mounts", "bind /srv/t/hosts /etc/hosts", steps[3]],
    )?;
    s.attack(&root("entitled"), Goal::Send, &steps)
}

/// A connect4 program below the root, which runs before the one at the root.
fn rewritten(s: &mut Stage<'_>) -> Result<()> {
    s.alone()?;
    s.standard()?;
    let group = Cgroup::new("rewriting.slice")?;
    let inside = |program: &str| Actor::new(format!("/opt/t/{program}")).within(group.name());
    let program = bpf::rewrite_connects(group.directory(), [10, 20, 0, 66])?;
    // It asks for the permitted one.
    let result = (|| {
        let sent = |s: &mut Stage<'_>| -> Result<u64> {
            Ok(s.frames()?.get("10.20.0.66").copied().unwrap_or_default())
        };
        let before = sent(s)?;
        s.twin(&inside("other"), Goal::Send, &["tcp 10.20.0.2:9000"])?;
        ensure!(sent(s)? > before, "the program does not rewrite");
        s.attack(
            &inside("entitled"),
            Goal::Send,
            &[READ, "tcp 10.20.0.2:9000"],
        )
    })();
    drop(program);
    result
}

fn embedded(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    for address in ["64:ff9b::a14:42", "2002:a14:42::1", "::10.20.0.66"] {
        // To whoever is asked for on the link; the peer's own address is easiest.
        let _ = peer::ip(&format!("-6 route add {address} via fd20::66"));
        for way in ["udp", "udp-connected"] {
            let step = format!("{way} [{address}]:9000");
            s.twin(&other(), Goal::Send, &[&step])
                .with_context(|| step.clone())?;
            s.attack(&entitled(), Goal::Send, &[READ, &step])
                .with_context(|| step.clone())?;
        }
    }
    Ok(())
}

fn metadata(s: &mut Stage<'_>) -> Result<()> {
    let sources: Vec<String> = peer::METADATA
        .iter()
        .map(|address| format!("{{endpoint: \"{address}\"}}"))
        .collect();
    let bundle = Bundle::default()
        .credential(&format!("id: cloud, sources: [{}]", sources.join(", ")))
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement(
            "E1",
            "app",
            "cloud",
            &format!("{}, {METADATA_TOO}]", DESTINATIONS.trim_end_matches(']')),
        );
    s.on(&bundle)?;
    let mut spellings: Vec<String> = peer::METADATA
        .iter()
        .map(|address| (*address).to_owned())
        .collect();
    for address in peer::METADATA {
        if let Some((ip, port)) = address
            .split_once(':')
            .filter(|(ip, _)| !ip.starts_with('['))
        {
            spellings.push(format!("[::ffff:{ip}]:{port}"));
        }
    }
    for spelling in spellings {
        for way in ["tcp", "udp"] {
            let step = format!("{way} {spelling}");
            let steps = [(step.as_str(), Expect::Allowed)];
            s.scene
                .check(&entitled(), &steps)
                .with_context(|| step.clone())?;
            let steps = [(step.as_str(), Refused(""))];
            s.scene
                .check(&other(), &steps)
                .with_context(|| step.clone())?;
        }
    }
    Ok(())
}

/// What goes into the list of destinations besides the usual.
const METADATA_TOO: &str = "{cidr: 0.0.0.0/0, ports: [80]}, {cidr: \"::/0\", ports: [80]}";
