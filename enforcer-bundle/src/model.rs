//! What a bundle means, once it has been read: plain values, each of them already checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use globset::Glob;
use ipnet::IpNet;
use jiff::{Timestamp, civil::Date};

/// A whole, consistent bundle: every reference in it resolves, and every value is in range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Who issued it, which version it is, and when it was and ceases to be good.
    pub metadata: Metadata,
    /// What holds where an entitlement says nothing.
    pub defaults: Defaults,
    /// Workloads that handle everybody's secrets; each has an [`Executable`]. Recorded, never holders.
    pub trusted: Vec<Match>,
    /// Tools that may do to the daemon and its programs what is refused to others; each has an [`Executable`].
    pub maintenance: Vec<Match>,
    /// Where following ends.
    pub declassify: Declassify,
    /// Destinations every holder may reach.
    pub baseline: Vec<Destination>,
    /// The secret material under governance, with unique ids and no source in two of them.
    pub credentials: Vec<Credential>,
    /// The workloads, with unique ids and no two with the same selectors.
    pub workloads: Vec<Workload>,
    /// Who may use what, with unique ids; at most [`MAX_GRANTS`](super::MAX_GRANTS) for the same workload and credential.
    pub entitlements: Vec<Entitlement>,
    /// SHA-256 of the source texts in their order, in lower-case hex: changes when any text does,
    /// even if the meaning stays. File names are not part of it.
    pub digest: String,
}

/// Names and values, such as `zone: eu-1`. As a condition: a node must have all of them.
pub type Labels = BTreeMap<String, String>;

impl Bundle {
    /// The labels that it depends on which nodes something concerns.
    pub fn label_names(&self) -> BTreeSet<&String> {
        let credentials = self.credentials.iter().map(|it| &it.nodes);
        let workloads = self.workloads.iter().map(|it| &it.nodes);
        let entitlements = self.entitlements.iter().map(|it| &it.nodes);
        let all = credentials.chain(workloads).chain(entitlements);
        all.flat_map(Labels::keys).collect()
    }

    /// Leaves out what does not concern a node with these labels: credentials, workloads and entitlements that name
    /// other nodes, entitlements of what is left out, and those that would have to be granted first.
    pub fn keep_for(&mut self, labels: &Labels) {
        let concerns = |nodes: &Labels| {
            nodes
                .iter()
                .all(|(name, value)| labels.get(name) == Some(value))
        };
        self.credentials.retain(|it| concerns(&it.nodes));
        self.workloads.retain(|it| concerns(&it.nodes));
        let credentials: BTreeSet<&str> =
            self.credentials.iter().map(|it| it.id.as_str()).collect();
        let workloads: BTreeSet<&str> = self.workloads.iter().map(|it| it.id.as_str()).collect();
        self.entitlements.retain(|it| {
            concerns(&it.nodes)
                && it.activation == Activation::Always
                && credentials.contains(it.credential.as_str())
                && workloads.contains(it.workload.as_str())
        });
    }

    /// The same, but nothing of it takes effect: what it denies is only told.
    #[must_use]
    pub fn monitored(&self) -> Self {
        let mut bundle = self.clone();
        bundle.defaults.mode = Mode::Monitor;
        for entitlement in &mut bundle.entitlements {
            entitlement.mode = None;
        }
        bundle
    }

    /// Everything that it selects processes by.
    pub fn selectors(&self) -> impl Iterator<Item = &Match> {
        let workloads = self.workloads.iter().map(|workload| &workload.selectors);
        workloads
            .chain(&self.trusted)
            .chain(&self.maintenance)
            .chain(&self.declassify.programs)
    }
}

/// Where following a credential that is marked so ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declassify {
    /// Who becomes no holder by what it is handed, and makes nobody one; each has an [`Executable`].
    pub programs: Vec<Match>,
    /// Files that are no copy, whoever writes them: [`Source::File`], [`Source::Files`] and [`Source::Directory`].
    pub files: Vec<Source>,
}

/// Where a bundle comes from and how long it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The governance service that issued the bundle.
    pub issuer: String,
    /// 1 or more; a later bundle of the same issuer has a higher one. 0 for [`known`](fn@super::known).
    pub version: u64,
    /// When it was issued.
    pub issued_at: Option<Timestamp>,
    /// From when on [`Defaults::on_expiry`] rules; later than `issued_at`. `None` never expires.
    pub expires_at: Option<Timestamp>,
}

/// What holds where nothing more specific is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Mode of entitlements that name none, and of uses no entitlement covers.
    pub mode: Mode,
    /// Action of entitlements that name none, and after uses no entitlement covers.
    pub action: Action,
    /// Whether holders may answer on connections they accepted.
    pub inbound: Inbound,
    /// What becomes of uses once the bundle has expired.
    pub on_expiry: OnExpiry,
    /// What becomes of entitlements when governance has not been heard of for too long.
    pub on_stale: OnStale,
    /// What becomes of uses by a container of which it is not known yet what it is.
    pub unclassified: Unclassified,
}

/// Whether a use outside the entitlements is refused or only recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Refuse it.
    #[default]
    Enforce,
    /// Permit it, and record what would have been denied.
    Monitor,
}

/// What follows a denial in [`Mode::Enforce`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// The call fails with `EPERM`.
    #[default]
    Block,
    /// The call fails, and the process gets `SIGKILL`.
    Kill,
    /// The call fails, and the workload instance is frozen.
    Freeze,
    /// The call fails, and the workload instance is killed.
    KillWorkload,
}

/// Whether a holder may answer on connections it accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Inbound {
    /// It may.
    #[default]
    Permit,
    /// It may not.
    Deny,
}

/// What becomes of uses once the bundle itself has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnExpiry {
    /// They are denied, with the reason `bundle-expired`.
    #[default]
    Deny,
    /// They are permitted and recorded.
    Monitor,
}

/// What becomes of uses without an entitlement by a container while its runtime has not said yet what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Unclassified {
    /// They are denied, with the reason `unclassified-workload`.
    #[default]
    Deny,
    /// They are permitted and recorded.
    Monitor,
}

/// What becomes of an entitlement past the time for which governance has said that nothing is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnStale {
    /// It stays in force.
    #[default]
    Keep,
    /// It has ended, and uses that only it covered are permitted and recorded.
    Monitor,
    /// It has ended.
    Deny,
}

/// Secret material under governance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Unique among the credentials.
    pub id: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// If set, a reach must be covered by an entitlement for this very credential, whatever else is held.
    pub exclusive: bool,
    /// If set, who is handed it by a holder holds it too, and files that a holder writes are as protected.
    pub follow: bool,
    /// Where it can be read; never empty.
    pub sources: Vec<Source>,
    /// On which nodes.
    pub nodes: Labels,
}

/// One place a credential can be read from.
///
/// Paths are absolute, in normal form, and as seen from the host's root. Two sources may still name
/// one inode (links, a pattern and a path, a file below a directory): only the node can know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// One file.
    File(PathBuf),
    /// The files an absolute pattern matches. `*` and `?` stay within one path component, `**` does not.
    Files(Glob),
    /// Everything below a directory; never the root.
    Directory(PathBuf),
    /// A network endpoint that hands the secret out. IPv4-mapped IPv6 addresses are IPv4 here.
    Endpoint(SocketAddr),
    /// A unix socket in the file system that hands the secret out: contacting it is a read.
    Socket(PathBuf),
    /// The same outside the file systems, by its name without the `@` that stands for the leading NUL.
    AbstractSocket(String),
    /// An environment variable of this name, whatever its value.
    Environment(String),
    /// What the [`catalogue`](fn@super::catalogue) has under this id, see [`entries`](super::entries).
    Catalogue(String),
    /// A Kubernetes secret, in whichever volumes of pods it is.
    KubernetesSecret(KubernetesSecret),
    /// The tokens for this audience that Kubernetes puts into volumes of pods; `None`: for its own API.
    ServiceAccountToken(Option<String>),
}

/// A secret of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KubernetesSecret {
    /// The namespace it is in.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Of its keys only these; empty: all of them.
    pub keys: BTreeSet<String>,
}

impl Source {
    /// Whether some of it is on the node itself, and not behind an address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Endpoint(_) => false,
            Self::Catalogue(id) => super::entries(id).any(super::Entry::is_local),
            _ => true,
        }
    }

    /// Whether it is in volumes of pods, of which somebody has to tell the node.
    #[must_use]
    pub fn is_of_pods(&self) -> bool {
        matches!(
            self,
            Self::KubernetesSecret(_) | Self::ServiceAccountToken(_)
        )
    }

    /// Whether this is a place in the file system.
    #[must_use]
    pub fn is_path(&self) -> bool {
        matches!(
            self,
            Self::File(_) | Self::Files(_) | Self::Directory(_) | Self::Socket(_)
        )
    }
}

/// The kind and the place: `file /etc/key`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Files(glob) => write!(f, "file {}", glob.glob()),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::Endpoint(endpoint) => write!(f, "endpoint {endpoint}"),
            Self::Socket(path) => write!(f, "socket {}", path.display()),
            Self::AbstractSocket(name) => write!(f, "socket @{name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Catalogue(id) => write!(f, "catalogue {id}"),
            Self::KubernetesSecret(secret) => {
                write!(f, "kubernetesSecret {}/{}", secret.namespace, secret.name)?;
                for (index, key) in secret.keys.iter().enumerate() {
                    write!(f, "{}{key}", if index == 0 { " " } else { ", " })?;
                }
                Ok(())
            }
            Self::ServiceAccountToken(Some(audience)) => {
                write!(f, "serviceAccountToken for {audience}")
            }
            Self::ServiceAccountToken(None) => write!(f, "serviceAccountToken"),
        }
    }
}

/// A set of processes under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique among the workloads.
    pub id: String,
    /// Which processes; never by [`Match::user`] alone.
    pub selectors: Match,
    /// On which nodes.
    pub nodes: Labels,
}

/// The facts that select processes; all that are given must hold. At least one is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// The program they run.
    pub executable: Option<Executable>,
    /// A program that they, or a process that they descend from, was started as.
    pub ancestor: Option<Executable>,
    /// The user they run as. Narrows the other selectors; is no identity by itself.
    pub user: Option<User>,
    /// A cgroup on the host and all below it: absolute path from the cgroup root, such as
    /// `/system.slice/foo.service`; never the root itself.
    pub cgroup: Option<String>,
    /// A unit with processes of its own.
    pub systemd_unit: Option<Unit>,
    /// A container of a pod.
    pub kubernetes: Option<Kubernetes>,
    /// A container, whoever runs it.
    pub container: Option<Container>,
    /// Whether they are of a login session or have a terminal, or were put into a running unit or container from
    /// outside. Narrows the other selectors; is no identity by itself.
    pub interactive: Option<bool>,
}

impl Match {
    /// Whether a container is asked for: then the executable's path is one in that.
    #[must_use]
    pub fn is_about_containers(&self) -> bool {
        self.kubernetes.is_some() || self.container.is_some()
    }

    /// Whether it selects by something that is an identity.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.executable.is_some()
            || self.ancestor.is_some()
            || self.cgroup.is_some()
            || self.systemd_unit.is_some()
            || self.is_of_container()
    }

    /// Whether it selects by what only a container runtime knows.
    #[must_use]
    pub fn is_of_container(&self) -> bool {
        self.kubernetes.is_some() || self.container.is_some()
    }
}

/// A container of a pod, by what Kubernetes knows of it; all that are given must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kubernetes {
    /// The pod's namespace. Never left out: labels and names are chosen by whoever may make pods in some namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: Option<String>,
    /// Labels of the pod.
    pub pod_labels: Labels,
    /// The container's name in the pod.
    pub container: Option<String>,
    /// The image, as the pod names it.
    pub image: Option<String>,
    /// A digest of the image: of its manifest, as in `repository@sha256:...`, or of its configuration.
    pub image_digest: Option<String>,
    /// Labels of the node.
    pub node_labels: Labels,
}

/// A container, by what its runtime knows of it; all that are given must hold, and at least one is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Container {
    /// Its name.
    pub name: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// As [`Kubernetes::image_digest`].
    pub image_digest: Option<String>,
}

/// A unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Such as `backup.service`.
    pub name: String,
    /// Whose service manager it belongs to; `None` for the system's.
    pub user: Option<User>,
}

/// A program on disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Executable {
    /// Absolute, in normal form.
    pub path: PathBuf,
    /// SHA-256 of its content, if the content matters.
    pub sha256: Option<[u8; 32]>,
    /// Its fs-verity digest with SHA-256, if the kernel shall vouch for the content.
    pub fs_verity: Option<[u8; 32]>,
}

/// A user, by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum User {
    /// A name, for the node to look up.
    Name(String),
    /// A uid; never `u32::MAX`.
    Id(u32),
}

/// "This workload may use this credential at these destinations, in this time."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// Unique among the entitlements.
    pub id: String,
    /// Id of a [`Workload`] of the same bundle.
    pub workload: String,
    /// Id of a [`Credential`] of the same bundle.
    pub credential: String,
    /// Where a holder may go. Empty: it may read, and reach nowhere.
    pub destinations: Vec<Destination>,
    /// Whom a holder may answer on connections it accepted; empty: nobody. `None`: [`Defaults::inbound`] says.
    pub serves: Option<Vec<Service>>,
    /// In force from this time on; earlier than `valid_until`.
    pub valid_from: Option<Timestamp>,
    /// In force until just before this time.
    pub valid_until: Option<Timestamp>,
    /// Instead of [`Defaults::mode`].
    pub mode: Option<Mode>,
    /// Instead of [`Defaults::action`].
    pub action: Option<Action>,
    /// Whether it is in force by itself.
    pub activation: Activation,
    /// Instead of [`Defaults::on_stale`].
    pub on_stale: Option<OnStale>,
    /// On which nodes.
    pub nodes: Labels,
    /// Whether governance has taken it back since the bundle was issued. No document says so.
    pub revoked: bool,
    /// Who agreed to it.
    pub approval: Option<Approval>,
}

/// Whether an entitlement is in force by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// It is.
    #[default]
    Always,
    /// Only while governance grants it, for a time: just in time.
    OnRequest,
    /// The same for emergencies: a ticket is needed, and it is told louder.
    BreakGlass,
}

/// Who agreed to an entitlement, and when to look at it again. Recorded, not enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approval {
    /// The person or group.
    pub approver: Option<String>,
    /// Where the decision is written down.
    pub ticket: Option<String>,
    /// The day by which it is to be reviewed.
    pub review_by: Option<Date>,
}

/// Somewhere a holder may send to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Which addresses.
    pub target: Target,
    /// Which ports, at most [`MAX_PORT_RANGES`](super::MAX_PORT_RANGES); empty means all of them.
    pub ports: Vec<PortRange>,
    /// Which protocols. [`Protocols::ICMP`] never comes with ports.
    pub protocols: Protocols,
}

/// Clients that a holder may answer on TCP connections it accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// The ports it listens on, at most [`MAX_PORT_RANGES`](super::MAX_PORT_RANGES); empty means all of them.
    pub ports: Vec<PortRange>,
    /// Where the clients are, in normal form as in [`Target::Cidr`]; empty means anywhere.
    pub from: Vec<IpNet>,
}

/// Which addresses a [`Destination`] covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A network in normal form, without host bits; a plain address is a network of one.
    /// IPv4-mapped IPv6 is IPv4 here. An IPv6 network means IPv6 only: `::/0` covers no IPv4.
    Cidr(IpNet),
    /// A DNS name in lower case, without a final dot; never an address.
    Host(String),
}

/// Ports `first` to `last`, both included; `1 <= first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// A set of transport protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocols(u8);

impl Protocols {
    /// TCP.
    pub const TCP: Self = Self(1);
    /// UDP.
    pub const UDP: Self = Self(2);
    /// ICMP for IPv4 and ICMPv6 for IPv6.
    pub const ICMP: Self = Self(4);
    /// Every protocol there is a name for.
    pub const ANY: Self = Self::TCP.union(Self::UDP).union(Self::ICMP);

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// TCP and UDP: what a destination means that names no protocol.
impl Default for Protocols {
    fn default() -> Self {
        Self::TCP.union(Self::UDP)
    }
}
