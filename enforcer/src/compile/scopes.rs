//! From destinations, and from the clients that may be answered, to the two tries of a scope: address prefixes, and
//! the ports of each.
//!
//! A trie gives only the longest match, so each entry also says what all shorter ones that cover it say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use enforcer_common::address::{Address, Protocol};
use enforcer_common::ids::{PortSetId, ScopeId};
use enforcer_common::tables::{PortKey, ScopeKey};
use ipnet::IpNet;

use super::{CompileError, Facts, Numbering, address};
use crate::bundle::{Destination, PortRange, Protocols, Service, Target};

/// A prefix of IPv6 addresses, IPv4 mapped: bits beyond its length are 0. In order, a prefix comes before all that
/// it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    bytes: [u8; 16],
    bits: u32,
}

impl Prefix {
    /// All of IPv6.
    const V6: Self = Self {
        bytes: [0; 16],
        bits: 0,
    };
    /// All of IPv4.
    const V4: Self = Self {
        bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
        bits: 96,
    };

    fn of(net: IpNet) -> Self {
        let net = net.trunc();
        let extra = if net.addr().is_ipv4() { 96 } else { 0 };
        Self {
            bytes: address(net.addr()).octets(),
            bits: extra + u32::from(net.prefix_len()),
        }
    }

    fn covers(self, other: Self) -> bool {
        let number = |prefix: Self| u128::from_be_bytes(prefix.bytes);
        let rest = 128 - self.bits;
        let same = (number(self) ^ number(other))
            .checked_shr(rest)
            .unwrap_or(0);
        self.bits <= other.bits && same == 0
    }

    fn is_v4(self) -> bool {
        Self::V4.covers(self)
    }
}

/// A destination with its name resolved.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    networks: Vec<Prefix>,
    ports: Vec<PortRange>,
    protocols: Protocols,
    /// It is about answers to clients: the networks are theirs, and the ports those that are listened on.
    answers: bool,
}

impl Spec {
    pub fn of(destination: &Destination, facts: &Facts) -> Self {
        let networks = match &destination.target {
            Target::Cidr(net) => vec![Prefix::of(*net)],
            Target::Host(name) => {
                let known = facts.hosts.get(name).into_iter().flatten();
                known
                    .map(|ip| Prefix::of(ip.to_canonical().into()))
                    .collect()
            }
        };
        Self {
            networks,
            ports: destination.ports.clone(),
            protocols: destination.protocols,
            answers: false,
        }
    }

    /// Clients that may be answered.
    pub fn service(service: &Service) -> Self {
        let mut networks: Vec<Prefix> = service.from.iter().copied().map(Prefix::of).collect();
        if networks.is_empty() {
            networks = vec![Prefix::V6, Prefix::V4];
        }
        Self {
            networks,
            ports: service.ports.clone(),
            protocols: Protocols::TCP,
            answers: true,
        }
    }

    /// All clients, on all ports.
    pub fn everybody() -> Self {
        Self::service(&Service {
            ports: Vec::new(),
            from: Vec::new(),
        })
    }

    /// An endpoint that hands out secrets.
    pub fn endpoint(endpoint: SocketAddr) -> Self {
        let port = endpoint.port();
        let ip: IpAddr = endpoint.ip().to_canonical();
        Self {
            networks: vec![Prefix::of(ip.into())],
            ports: vec![PortRange {
                first: port,
                last: port,
            }],
            protocols: Protocols::TCP.union(Protocols::UDP),
            answers: false,
        }
    }

    /// The protocols, and the ports of each, first and last.
    fn transports(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        let protocols = [
            (Protocols::TCP, Protocol::TCP),
            (Protocols::UDP, Protocol::UDP),
            (Protocols::ICMP, Protocol::ICMP),
        ];
        let any = [(0, u16::MAX)];
        let ports: Vec<(u16, u16)> = if self.ports.is_empty() {
            any.to_vec()
        } else {
            let ranges = self.ports.iter();
            ranges.map(|range| (range.first, range.last)).collect()
        };
        protocols
            .into_iter()
            .filter(|(bit, protocol)| {
                self.protocols.contains(*bit)
                    && (self.ports.is_empty() || *protocol != Protocol::ICMP)
            })
            .flat_map(move |(_, protocol)| {
                let ports = ports.clone();
                let protocol = if self.answers {
                    protocol.answering()
                } else {
                    protocol
                };
                ports
                    .into_iter()
                    .map(move |(first, last)| (protocol, first, last))
            })
    }
}

/// For each protocol and slot its port ranges, in order, apart from each other: the content of a port set.
pub(super) type Intervals = BTreeMap<(Protocol, u32), Vec<(u16, u16)>>;

/// The destinations a prefix has, each with the slot of its entitlement.
type Cover<'a> = Vec<(u32, &'a Spec)>;

/// The scopes of one policy.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    pub prefixes: BTreeMap<ScopeKey, PortSetId>,
    pub ports: BTreeMap<PortKey, u32>,
    /// Those whose ports are in there, by what says them: most scopes have one of a few.
    known: HashMap<Vec<PortsOf>, PortSetId>,
}

/// What a destination says of ports: the slot of its entitlement, and its ports, protocols and whether it is about answers.
type PortsOf = (u32, Vec<PortRange>, Protocols, bool);

impl Scopes {
    /// The scope in which bit `n` stands for the destinations `slots[n]`.
    pub fn number(
        &mut self,
        slots: &[&[Spec]],
        numbering: &mut Numbering,
    ) -> Result<ScopeId, CompileError> {
        let mut content = Vec::new();
        for (prefix, cover) in covers(slots) {
            content.push((prefix, self.port_set(&cover, numbering)?));
        }
        if content.is_empty() {
            return Ok(ScopeId(0));
        }
        let scope = numbering.scope(content.clone())?;
        for (prefix, ports) in content {
            let address = Address::from_octets(prefix.bytes);
            let key = ScopeKey::new(scope, &address, prefix.bits);
            self.prefixes.insert(key, ports);
        }
        Ok(scope)
    }

    /// The ports of a prefix; the set 0 has no entries, and so covers nothing.
    fn port_set(
        &mut self,
        cover: &Cover<'_>,
        numbering: &mut Numbering,
    ) -> Result<PortSetId, CompileError> {
        if cover.is_empty() {
            return Ok(PortSetId(0));
        }
        let ports_of = |(slot, spec): &(u32, &Spec)| -> PortsOf {
            (*slot, spec.ports.clone(), spec.protocols, spec.answers)
        };
        let said: Vec<PortsOf> = cover.iter().map(ports_of).collect();
        if let Some(known) = self.known.get(&said) {
            return Ok(*known);
        }
        let intervals = intervals(cover);
        let id = numbering.port_set(intervals.clone())?;
        for ((protocol, port, bits), slots) in port_prefixes(&intervals) {
            self.ports
                .insert(PortKey::new(id, protocol.0, port, bits), slots);
        }
        self.known.insert(said, id);
        Ok(id)
    }
}

/// All prefixes of a scope, each with everything that covers it. IPv6 prefixes cover no IPv4.
fn covers<'a>(slots: &[&'a [Spec]]) -> BTreeMap<Prefix, Cover<'a>> {
    let mut v4: BTreeMap<Prefix, Cover<'a>> = BTreeMap::new();
    let mut v6: BTreeMap<Prefix, Cover<'a>> = BTreeMap::new();
    for (slot, specs) in (0..).zip(slots) {
        for spec in *specs {
            for network in &spec.networks {
                let family = if network.is_v4() { &mut v4 } else { &mut v6 };
                family.entry(*network).or_default().push((slot, spec));
            }
        }
    }
    if v6.keys().any(|prefix| prefix.covers(Prefix::V4)) {
        v4.entry(Prefix::V4).or_default();
    }
    let mut all = accumulate(v4);
    let mut v6 = accumulate(v6);
    // What the IPv6 prefix around it says as well, as where everybody may be answered, needs no second row.
    let around = v6
        .iter()
        .rev()
        .find(|(prefix, _)| prefix.covers(Prefix::V4));
    if let Some((_, around)) = around
        && all.get(&Prefix::V4).is_some_and(|v4| same(v4, around))
    {
        all.remove(&Prefix::V4);
    }
    all.append(&mut v6);
    all
}

/// Whether two covers are the same destinations in the same slots.
fn same(one: &Cover<'_>, other: &Cover<'_>) -> bool {
    let by_place = |cover: &Cover<'_>| -> BTreeSet<(u32, *const Spec)> {
        let places = cover.iter();
        places
            .map(|(slot, spec)| (*slot, std::ptr::from_ref(*spec)))
            .collect()
    };
    by_place(one) == by_place(other)
}

/// Adds to each prefix what the prefixes that cover it have.
fn accumulate(own: BTreeMap<Prefix, Cover<'_>>) -> BTreeMap<Prefix, Cover<'_>> {
    let mut above: Vec<(Prefix, Cover<'_>)> = Vec::new();
    let mut all = BTreeMap::new();
    for (prefix, mut cover) in own {
        while above.last().is_some_and(|(last, _)| !last.covers(prefix)) {
            above.pop();
        }
        if let Some((_, inherited)) = above.last() {
            cover.extend(inherited);
        }
        above.push((prefix, cover.clone()));
        all.insert(prefix, cover);
    }
    all
}

fn intervals(cover: &Cover<'_>) -> Intervals {
    let mut all: BTreeMap<(Protocol, u32), BTreeSet<(u16, u16)>> = BTreeMap::new();
    for (slot, spec) in cover {
        for (protocol, first, last) in spec.transports() {
            let ranges = all.entry((protocol, *slot)).or_default();
            ranges.insert((first, last));
        }
    }
    all.into_iter()
        .map(|(key, ranges)| (key, merged(ranges)))
        .collect()
}

/// Ranges that overlap or touch become one.
fn merged(ranges: BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => {
                before.1 = before.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The port prefixes of a set, each with the slots of all ranges it lies in.
fn port_prefixes(intervals: &Intervals) -> BTreeMap<(Protocol, u16, u32), u32> {
    let mut prefixes = BTreeMap::new();
    for ((protocol, _), ranges) in intervals {
        for (first, last) in ranges {
            for (port, bits) in cut(*first, *last) {
                prefixes.insert((*protocol, port, bits), 0);
            }
        }
    }
    for ((protocol, port, bits), slots) in &mut prefixes {
        let end = u32::from(*port) + (0x1_0000 >> *bits) - 1;
        for ((own, slot), ranges) in intervals {
            let inside = |(first, last): &(u16, u16)| first <= port && end <= u32::from(*last);
            if own == protocol && ranges.iter().any(inside) {
                *slots |= 1 << slot;
            }
        }
    }
    prefixes
}

/// Cuts a range into the fewest prefixes: the first port of each, and its length in bits.
fn cut(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut parts = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        let aligned = at.trailing_zeros().min(16);
        let fitting = (end - at).ilog2();
        let size = aligned.min(fitting);
        parts.push((at as u16, 16 - size));
        at += 1 << size;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_into_prefixes() {
        for (first, last, expected) in [
            (0, 65535, vec![(0, 0)]),
            (443, 443, vec![(443, 16)]),
            (8000, 8080, vec![(8000, 10), (8064, 12), (8080, 16)]),
            (32768, 65535, vec![(32768, 1)]),
        ] {
            assert_eq!(cut(first, last), expected, "{first}-{last}");
        }
        assert_eq!(cut(1, 65534).len(), 30);
    }

    #[test]
    fn prefixes_sort_before_what_they_cover() {
        let prefix = |text: &str| Prefix::of(text.parse().expect("a network"));
        assert!(prefix("::/0").covers(prefix("2001:db8::/32")));
        assert!(prefix("::/0").covers(Prefix::V4) && prefix("::/0") < Prefix::V4);
        assert!(prefix("10.0.0.0/8").covers(prefix("10.1.0.0/16")));
        assert!(!prefix("10.0.0.0/8").covers(prefix("11.0.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(prefix("10.0.0.0/8")));
        assert!(prefix("0.0.0.0/0") == Prefix::V4 && prefix("0.0.0.0/0").is_v4());
    }
}
