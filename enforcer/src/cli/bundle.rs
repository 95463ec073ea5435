//! `enforcer bundle`: keys, and bundles that are signed.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use enforcer::bundle::{Kind, Labels, Parts};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::Held;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::statement::{Audience, Head, Snapshot, Statement as _};
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;

use super::{WANTING, failed};

#[derive(Subcommand)]
pub enum Command {
    /// Makes an ed25519 key: the private half into a new file (mode 0600), the public half on standard output
    Keygen {
        /// The file
        key: PathBuf,
    },
    /// Signs a bundle, or a trust root, or adds a signature to what is signed; the envelope goes to standard output
    Sign {
        /// A bundle (YAML file or directory), a trust root (JSON), or an envelope (*.dsse.json)
        document: PathBuf,
        /// A private key; may be repeated
        #[arg(long, required = true, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// The last revocation that the bundle knows of
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        includes_revocations: u64,
    },
    /// Says whether a signed bundle is good: exit code 3, and why, if it is not
    Verify {
        /// An envelope (*.dsse.json), or - for standard input
        envelope: PathBuf,
        /// Whose signatures count
        #[arg(long, value_name = "FILE", default_value = "/etc/enforcer/trust.json")]
        trust: PathBuf,
        /// A label of the node it is for, NAME=VALUE; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = super::label)]
        labels: Vec<(String, String)>,
    },
    /// Says what differs between two bundles, a line for each credential, workload and entitlement; exit code 3 if
    /// anything does
    Diff {
        /// A bundle (YAML file or directory), or a signed one (*.dsse.json)
        old: PathBuf,
        /// Another
        new: PathBuf,
    },
}

impl Command {
    pub fn run(self) -> ExitCode {
        let result = match self {
            Self::Keygen { key } => keygen(&key),
            Self::Sign {
                document,
                key,
                includes_revocations,
            } => sign(&document, &key, includes_revocations),
            Self::Verify {
                envelope,
                trust,
                labels,
            } => verify(&envelope, &trust, labels.into_iter().collect()),
            Self::Diff { old, new } => diff(&old, &new),
        };
        result.unwrap_or_else(|error| failed(&format!("{error:#}")))
    }
}

fn keygen(path: &Path) -> Result<ExitCode> {
    let key = SigningKey::generate();
    key.store(path)?;
    println!("{}", key.public());
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn is_envelope(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|name| name.ends_with(".dsse.json"))
}

fn envelope(path: &Path) -> Result<Envelope> {
    serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not an envelope", path.display()))
}

fn sign(document: &Path, keys: &[PathBuf], includes_revocations: u64) -> Result<ExitCode> {
    let keys = keys.iter().map(|path| SigningKey::load(path));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let signed = if is_envelope(document) {
        let mut signed = envelope(document)?;
        keys.iter().for_each(|key| signed.add_signature(key));
        signed
    } else if document.extension().is_some_and(|it| it == "json")
        && let Ok(root) = serde_json::from_slice::<TrustRoot>(&read(document)?)
    {
        root.check().map_err(anyhow::Error::msg)?;
        root.sign(&keys)
    } else {
        let (bundle, parts) = enforcer::bundle::load_parts(document)?;
        if let Some(name) = bundle.label_names().first() {
            bail!(
                "parts of the bundle are for nodes with the label {name:?} only: a signed bundle is for all nodes; sign one for each kind of node"
            );
        }
        let metadata = bundle.metadata;
        Snapshot {
            head: Head {
                issuer: metadata.issuer,
                version: metadata.version,
                audience: Audience::default(),
                issued_at: metadata.issued_at.unwrap_or_else(Timestamp::now),
                expires_at: metadata.expires_at,
                includes_revocations,
                revoked: Vec::new(),
                digest: parts.digest(),
            },
            entitlements: parts.entitlement_digests(),
            parts,
        }
        .sign(&keys)
    };
    println!("{}", serde_json::to_string(&signed)?);
    Ok(ExitCode::SUCCESS)
}

fn verify(path: &Path, trust: &Path, labels: Labels) -> Result<ExitCode> {
    let root: TrustRoot = serde_json::from_slice(&read(trust)?)
        .with_context(|| format!("{} is not a trust root", trust.display()))?;
    let envelope = envelope(path)?;
    let held = Held::new(root, labels)?;
    match held.take(&envelope, Timestamp::now()) {
        Ok((held, _)) => {
            let summary = held.summary();
            println!(
                "{}: version {}, digest {}: good",
                path.display(),
                summary.bundle_version,
                summary.bundle_digest
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(refusal) => {
            println!("{}: {refusal}", path.display());
            Ok(ExitCode::from(WANTING))
        }
    }
}

fn parts(path: &Path) -> Result<Parts> {
    if !is_envelope(path) {
        return Ok(enforcer::bundle::load_parts(path)?.1);
    }
    // To look at it, nobody need have signed it.
    let envelope = envelope(path)?;
    if envelope.payload_type != Snapshot::TYPE {
        bail!("{} is no bundle: {}", path.display(), envelope.payload_type);
    }
    let snapshot: Snapshot = serde_json::from_slice(&envelope.payload)
        .with_context(|| format!("{} is no bundle", path.display()))?;
    Ok(snapshot.parts)
}

fn diff(old: &Path, new: &Path) -> Result<ExitCode> {
    let (old, new) = (parts(old)?, parts(new)?);
    let change = old.change_to(&new);
    if change.settings.is_some() {
        println!("~ settings");
    }
    for kind in Kind::ALL {
        let name = kind.name().trim_end_matches('s');
        for id in change.remove.get(&kind).into_iter().flatten() {
            println!("- {name} {id}");
        }
        for id in change
            .upsert
            .get(&kind)
            .into_iter()
            .flatten()
            .map(|it| it.0)
        {
            let was = old.items.get(&kind).is_some_and(|it| it.contains_key(id));
            println!("{} {name} {id}", if was { '~' } else { '+' });
        }
    }
    Ok(if change.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WANTING)
    })
}
