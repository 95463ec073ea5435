//! The smallest things a bundle is written in, from text to value. Each function says in its error what was
//! got, what was expected and what to try.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use enforcer_common::tables::{SOCKET_NAME_BYTES, VARIABLE_BYTES};
use globset::{Glob, GlobBuilder};
use ipnet::IpNet;
use jiff::{Timestamp, civil::Date};

use super::catalogue::entries;
use super::mistake::{did_you_mean, quoted};
use super::model::{PortRange, Source, User};

type Parsed<T> = Result<T, String>;

/// Longest path Linux takes, in bytes, without the NUL.
const MAX_PATH: usize = 4095;
/// Unit types that have a cgroup, and so processes.
const UNIT_TYPES: [&str; 6] = ["service", "scope", "slice", "socket", "mount", "swap"];
/// Ids that begin so are the daemon's own.
const RESERVED_PREFIX: &str = "enforcer-";

fn got<T>(text: &str, rest: &str) -> Parsed<T> {
    Err(format!("got {}, {rest}", quoted(text)))
}

/// The id of a credential, workload or entitlement.
pub(super) fn id(text: &str) -> Parsed<String> {
    let valid = text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    if !valid {
        return got(
            text,
            "expected an id: an ASCII letter or digit, then up to 62 letters, digits, `.`, `_` and `-`",
        );
    }
    if text.starts_with(RESERVED_PREFIX) {
        return got(
            text,
            "but ids that begin with `enforcer-` are reserved for canaries; choose another",
        );
    }
    Ok(text.to_owned())
}

/// A word for people: not empty, printable, of bounded length.
pub(super) fn label(text: &str) -> Parsed<String> {
    if text.trim().is_empty() || text.len() > 1024 || text.contains(char::is_control) {
        return got(text, "expected 1 to 1024 bytes of text on one line");
    }
    Ok(text.to_owned())
}

/// A point in time, by RFC 3339.
pub(super) fn time(text: &str) -> Parsed<Timestamp> {
    let shape_at = |index: usize, accepted: &[u8]| {
        text.as_bytes()
            .get(index)
            .is_some_and(|b| accepted.contains(b))
    };
    let shaped = shape_at(4, b"-")
        && shape_at(7, b"-")
        && shape_at(10, b"Tt")
        && shape_at(13, b":")
        && shape_at(16, b":");
    match text.parse() {
        Ok(time) if shaped && !text.contains('[') => Ok(time),
        _ => got(
            text,
            "expected a time with its zone by RFC 3339, such as 2026-11-22T00:00:00Z",
        ),
    }
}

/// A day.
pub(super) fn date(text: &str) -> Parsed<Date> {
    match text.parse() {
        Ok(date) if text.len() == 10 => Ok(date),
        _ => got(text, "expected a day, such as 2027-01-15"),
    }
}

/// An absolute path in normal form.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    absolute(text).map(PathBuf::from)
}

fn absolute(text: &str) -> Parsed<&str> {
    if text.len() > MAX_PATH || text.contains(char::is_control) {
        return got(
            text,
            "expected a path of at most 4095 bytes without control characters",
        );
    }
    let Some(components) = text.strip_prefix('/') else {
        return got(
            text,
            "expected an absolute path; write it from the root, with `/` first",
        );
    };
    if text.len() > 1
        && components
            .split('/')
            .any(|component| matches!(component, "" | "." | ".."))
    {
        return got(
            text,
            "expected a path without empty, `.` and `..` parts and without a final `/`",
        );
    }
    Ok(text)
}

/// A unix socket: a path, or `@` and a name outside the file systems.
pub(super) fn socket(text: &str) -> Parsed<Source> {
    if let Some(name) = text.strip_prefix('@') {
        let fits = (1..=SOCKET_NAME_BYTES).contains(&name.len());
        if !fits || name.contains(char::is_control) {
            return got(
                text,
                "expected `@` and the name of an abstract socket: 1 to 107 bytes without control characters",
            );
        }
        return Ok(Source::AbstractSocket(name.to_owned()));
    }
    if !text.starts_with('/') {
        return got(
            text,
            "expected the absolute path of a unix socket, or `@` and the name of an abstract one",
        );
    }
    if text.contains(['*', '?', '[']) {
        return got(
            text,
            "expected the path of one socket; patterns are not supported here",
        );
    }
    if text.ends_with('/') {
        return got(
            text,
            "expected the path of a socket; for all below a directory write `directory:`",
        );
    }
    path(text).map(Source::Socket)
}

/// What the catalogue has under an id.
pub(super) fn catalogue(text: &str) -> Parsed<Source> {
    if entries(text).next().is_some() {
        return Ok(Source::Catalogue(text.to_owned()));
    }
    let ids = || {
        super::catalogue::catalogue()
            .iter()
            .map(|it| it.id.as_str())
    };
    let groups = ids().filter_map(|id| id.split('.').next());
    let hint = did_you_mean(text, ids().chain(groups));
    got(
        text,
        &format!(
            "expected an id in the catalogue, or what some of them begin with before a dot, such as `aws`{hint}"
        ),
    )
}

/// The name of one file, without a directory.
pub(super) fn file_name(text: &str) -> Parsed<String> {
    let strange = matches!(text, "" | "." | "..") || text.contains(['/', '\0']);
    if strange || text.len() > 255 || text.contains(char::is_control) {
        return got(
            text,
            "expected the name of a file: 1 to 255 bytes without `/`",
        );
    }
    Ok(text.to_owned())
}

/// The name of a namespace or a secret.
pub(super) fn kubernetes_name(text: &str) -> Parsed<String> {
    let good = |part: &str| {
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(ends) && part.ends_with(ends) && part.chars().all(|c| ends(c) || c == '-')
    };
    if text.len() > 253 || !text.split('.').all(good) {
        return got(
            text,
            "expected a name as Kubernetes has them: lower-case letters, digits, `-` and `.`, at most 253",
        );
    }
    Ok(text.to_owned())
}

/// A key of a secret, which is the name of a file.
pub(super) fn kubernetes_key(text: &str) -> Parsed<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.starts_with("..") || !text.chars().all(allowed) {
        return got(
            text,
            "expected a key of the secret: letters, digits, `-`, `_` and `.`",
        );
    }
    file_name(text)
}

/// The name of an environment variable.
pub(super) fn variable(text: &str) -> Parsed<Source> {
    // With its `=`, a name is to fit into the kernel's key.
    let fits = text.len() < VARIABLE_BYTES;
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !(fits && begins && goes_on) {
        let expected = "expected the name of an environment variable: a letter or `_`, then up to 61 letters, \
                        digits and `_`";
        // What stands behind the name may be the secret itself.
        return match text.split_once('=') {
            Some((name, _)) => got(
                &format!("{name}=..."),
                &format!("{expected}; write the name alone, every value is meant"),
            ),
            None => got(text, expected),
        };
    }
    Ok(Source::Environment(text.to_owned()))
}

/// The path of a program.
pub(super) fn executable(text: &str) -> Parsed<PathBuf> {
    if text.contains(['*', '?']) {
        return got(
            text,
            "expected the path of one program; patterns are not supported here",
        );
    }
    path(text)
}

/// A directory whose whole content is a credential.
pub(super) fn directory(text: &str) -> Parsed<Source> {
    let trimmed = if text.len() > 1 {
        text.strip_suffix('/').unwrap_or(text)
    } else {
        text
    };
    if trimmed == "/" {
        return got(
            text,
            "which would make every file a credential; name a directory below it",
        );
    }
    path(trimmed).map(Source::Directory)
}

/// A file, or a pattern for files: absolute, with `*`, `?`, `[...]` and `**` in it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn file(text: &str) -> Parsed<Source> {
    if text.ends_with('/') {
        return got(
            text,
            "expected the path of a file; for all below a directory write `directory:`",
        );
    }
    let text = absolute(text)?;
    if text.contains(['*', '?', '[']) {
        glob(text).map(Source::Files)
    } else {
        Ok(Source::File(text.into()))
    }
}

fn glob(text: &str) -> Parsed<Glob> {
    if text.contains(['{', '}', '\\']) {
        return got(
            text,
            "expected a pattern with `*`, `?`, `[...]` and `**` only; write one item for each alternative",
        );
    }
    if text
        .split('/')
        .any(|component| component != "**" && component.contains("**"))
    {
        return got(
            text,
            "expected `**` to stand alone between two `/`; within a part use `*`",
        );
    }
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(false)
        .build()
        .or_else(|error| {
            got(
                text,
                &format!(
                    "which is not a pattern: {}; a plain `[` is written `[[]`",
                    error.kind()
                ),
            )
        })
}

/// A SHA-256 in hex.
pub(super) fn sha256(text: &str) -> Parsed<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return got(
            text,
            "expected a SHA-256 as 64 hex digits, as sha256sum prints it",
        );
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)
            .map_err(|error| error.to_string())?;
    }
    Ok(digest)
}

/// A digest of an image.
pub(super) fn image_digest(text: &str) -> Parsed<String> {
    let digest = text.strip_prefix("sha256:").filter(|it| sha256(it).is_ok());
    if digest.is_none_or(|it| it.contains(|c: char| c.is_ascii_uppercase())) {
        return got(
            text,
            "expected `sha256:` and 64 hex digits in lower case, as behind the `@` of an image's name",
        );
    }
    Ok(text.to_owned())
}

/// A digest of fs-verity.
pub(super) fn fs_verity(text: &str) -> Parsed<[u8; 32]> {
    let digest = text.strip_prefix("sha256:").map(sha256);
    digest.and_then(Result::ok).map_or_else(
        || {
            got(
                text,
                "expected `sha256:` and 64 hex digits, as `fsverity measure` prints it",
            )
        },
        Ok,
    )
}

/// A user's name.
pub(super) fn user_name(text: &str) -> Parsed<User> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return got(
            text,
            "expected a user's name; for a uid write the number without quotes",
        );
    }
    if text.len() > 256
        || text.contains(|c: char| c.is_whitespace() || c.is_control() || ":/,".contains(c))
    {
        return got(
            text,
            "expected a user's name, without spaces, `:`, `/` and `,`",
        );
    }
    Ok(User::Name(text.to_owned()))
}

/// A cgroup of the host.
pub(super) fn cgroup(text: &str) -> Parsed<String> {
    if text == "/sys/fs/cgroup" || text.starts_with("/sys/fs/cgroup/") {
        return got(
            text,
            "expected a path from the cgroup root; leave out /sys/fs/cgroup",
        );
    }
    if text == "/" {
        return got(
            text,
            "which is every process of the host; name a cgroup below it",
        );
    }
    absolute(text).map(str::to_owned)
}

/// A systemd unit that can have processes.
pub(super) fn unit(text: &str) -> Parsed<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || r":-_.\@".contains(c);
    match text.rsplit_once('.') {
        Some((name, unit_type))
            if UNIT_TYPES.contains(&unit_type)
                && !name.is_empty()
                && text.len() <= 255
                && text.chars().all(allowed) =>
        {
            if name.ends_with('@') {
                return got(text, "which is a template; name an instance of it");
            }
            Ok(text.to_owned())
        }
        _ => got(
            text,
            "expected the full name of a unit with processes, ending in .service, .scope, .slice, .socket, .mount or .swap",
        ),
    }
}

/// A unit of a user's own service manager.
pub(super) fn user_unit(text: &str) -> Parsed<String> {
    let name = unit(text)?;
    if name.ends_with(".slice") {
        return got(text, "expected a unit that is no slice, as it is a user's");
    }
    Ok(name)
}

/// The address and port of an endpoint that hands out secrets.
pub(super) fn endpoint(text: &str) -> Parsed<Source> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return got(
            text,
            "expected an address and a port, such as 169.254.169.254:80 or [fd00:ec2::254]:80",
        );
    };
    let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    if address.port() == 0 || address.ip().is_unspecified() || scoped {
        return got(
            text,
            "expected one address without a zone, and a port from 1 to 65535",
        );
    }
    Ok(Source::Endpoint(SocketAddr::new(
        address.ip().to_canonical(),
        address.port(),
    )))
}

/// A network or a plain address, of a destination.
pub(super) fn cidr(text: &str) -> Parsed<IpNet> {
    network(text, "; for a name write `host:`")
}

/// A network or a plain address, of clients.
pub(super) fn client(text: &str) -> Parsed<IpNet> {
    network(text, "; clients are known by their addresses only")
}

/// A network or a plain address; `if_named` is the advice for a name.
fn network(text: &str, if_named: &str) -> Parsed<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let Ok(network) = text.parse::<IpNet>() else {
        let advice = if host(text).is_ok() { if_named } else { "" };
        let expected =
            "expected an IPv4 or IPv6 address or network, such as 10.20.0.0/16 or 2001:db8::/32";
        return got(text, &format!("{expected}{advice}"));
    };
    let network = unmapped(network);
    if network != network.trunc() {
        let (address, meant) = (network.addr(), network.trunc());
        return got(
            text,
            &format!(
                "which has bits set beyond its prefix; write {meant} for the network, or {address} for the address"
            ),
        );
    }
    Ok(network)
}

/// `::ffff:a.b.c.d/96+n` as `a.b.c.d/n`.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    v6.addr()
        .to_ipv4_mapped()
        .zip(v6.prefix_len().checked_sub(96))
        .and_then(|(address, prefix)| IpNet::new(address.into(), prefix).ok())
        .unwrap_or(network)
}

/// A DNS name, lower-cased, without its final dot.
pub(super) fn host(text: &str) -> Parsed<String> {
    let expected = "expected a DNS name, such as api.stripe.com";
    let wrong = |advice: &str| got(text, &format!("{expected}{advice}"));
    if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        return wrong("; for an address write `cidr:`");
    }
    if text.contains('/') {
        return wrong("; write the name alone, without scheme and path");
    }
    if text.contains(':') {
        return wrong("; write the name alone, and the port in `ports`");
    }
    if text.contains('*') {
        return wrong("; wildcards are not supported, name each host");
    }
    if !text.is_ascii() {
        return wrong("; write it in its ASCII form, with xn--");
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let last_is_number = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || last_is_number || !name.split('.').all(is_dns_label) {
        return wrong("");
    }
    Ok(name)
}

/// Underscores are no part of host names by the standard, and of many in practice.
fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Ports "lo-hi".
pub(super) fn port_range(text: &str) -> Parsed<PortRange> {
    let port = |digits: &str| {
        digits
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0 && !digits.starts_with(['0', '+']))
    };
    match text
        .split_once('-')
        .map(|(first, last)| (port(first), port(last)))
    {
        Some((Some(first), Some(last))) if first <= last => Ok(PortRange { first, last }),
        Some((Some(first), Some(last))) => {
            got(text, &format!("which is upside down; write {last}-{first}"))
        }
        None if port(text).is_some() => got(text, "expected a number; write it without quotes"),
        _ => got(
            text,
            "expected a port from 1 to 65535, or a range such as 8000-8080",
        ),
    }
}
