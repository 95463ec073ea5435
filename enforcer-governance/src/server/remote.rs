//! Documents from a web server, as bundles of the Open Policy Agent are distributed: a gzipped tar archive, asked for
//! again with the entity tag of the last one, and by servers that can do it answered when there is a new one.
//!
//! <https://www.openpolicyagent.org/docs/management-bundles>. Of the archive the YAML documents count, or the one
//! bundle in it that was signed elsewhere.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use enforcer_bundle::MAX_BYTES;
use flate2::read::GzDecoder;
use tokio::sync::watch;
use ureq::Agent;
use ureq::http::header::{CONTENT_TYPE, ETAG};

use super::ledger::Ledger;
use super::roots::Roots;
use super::{Error, documents};
use crate::trust::TrustRoot;

/// How long a server is asked to wait for something new.
const WAIT: Duration = Duration::from_secs(60);
/// Between two questions to a server that does not wait, and after a failure: anything between these.
const PAUSE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// What servers that can wait say that they answer with.
const WAITS: &str = "application/vnd.openpolicyagent.bundles";

/// Where the documents are.
#[derive(Clone, Debug)]
pub struct Location {
    /// `https://...`, or `http://` on this machine.
    pub url: String,
    /// A file with the token that the server wants.
    pub token: Option<PathBuf>,
}

/// A web server that is asked for documents.
pub struct Remote {
    location: Location,
    agent: Agent,
    /// Where the last archive was unpacked.
    place: PathBuf,
    tag: Option<String>,
    /// Whether the server answers when there is something new.
    waits: bool,
}

impl Remote {
    /// # Errors
    /// If the location is no URL that can be asked safely.
    pub fn new(location: Location, state: &Path) -> Result<Self, Error> {
        let here = ["http://127.0.0.1:", "http://[::1]:", "http://localhost:"];
        let safe = location.url.starts_with("https://")
            || here.iter().any(|start| location.url.starts_with(start));
        if !safe {
            return Err(Error::Refused(format!(
                "got {:?}, expected https://..., or http:// on this machine",
                location.url
            )));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(WAIT + Duration::from_secs(30)))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        Ok(Self {
            location,
            agent: agent.into(),
            place: state.join("documents"),
            tag: None,
            waits: false,
        })
    }

    /// Where what was fetched last is.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Asks once. `true` if there are new documents in [`Remote::place`].
    ///
    /// # Errors
    /// If the server cannot be asked, or what it has is no bundle; then the place has what it had.
    pub fn fetch(&mut self, root: Option<&TrustRoot>) -> Result<bool, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Refused(format!("{}: {error}", self.location.url))
        };
        let wait = WAIT.as_secs();
        let mut request = self
            .agent
            .get(&self.location.url)
            .header("Prefer", format!("modes=snapshot;wait={wait}"));
        if let Some(tag) = &self.tag {
            request = request.header("If-None-Match", tag);
        }
        if let Some(path) = &self.location.token {
            let token = fs::read_to_string(path).map_err(Error::io(path))?;
            request = request.header("Authorization", format!("Bearer {}", token.trim()));
        }
        let mut response = request.call().map_err(|error| failed(&error))?;
        let header = |name| {
            let value = response.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (tag, kind) = (header(ETAG), header(CONTENT_TYPE));
        match response.status().as_u16() {
            200 => {}
            304 => return Ok(false),
            other => return Err(failed(&format!("got status {other}, expected 200 or 304"))),
        }
        let archive = response
            .body_mut()
            .with_config()
            .limit(MAX_BYTES)
            .read_to_vec()
            .map_err(|error| failed(&error))?;
        self.waits = kind.is_some_and(|kind| kind.starts_with(WAITS));
        // One that is no good is not asked for again until it is another.
        self.tag = tag;
        self.unpack(&archive, root)?;
        Ok(true)
    }

    /// Puts the archive's documents in the place, if they are good.
    fn unpack(&self, archive: &[u8], root: Option<&TrustRoot>) -> Result<(), Error> {
        let new = self.place.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new).map_err(Error::io(&new))?;
        let broken = |error: std::io::Error| {
            Error::Refused(format!("{}: no archive: {error}", self.location.url))
        };
        let mut left = MAX_BYTES;
        let mut archive = tar::Archive::new(GzDecoder::new(archive));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path().map_err(broken)?.into_owned();
            // Directories do not count, so that no name leads elsewhere.
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let counts = [".yaml", ".yml", ".dsse.json"];
            if !entry.header().entry_type().is_file() || !counts.iter().any(|it| name.ends_with(it))
            {
                continue;
            }
            let mut bytes = Vec::new();
            (&mut entry)
                .take(left + 1)
                .read_to_end(&mut bytes)
                .map_err(broken)?;
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                Error::Refused(format!(
                    "{}: more than {MAX_BYTES} bytes when unpacked",
                    self.location.url
                ))
            })?;
            let whole = path.to_string_lossy().replace('/', "_");
            let to = new.join(whole.trim_start_matches('.'));
            fs::write(&to, bytes).map_err(Error::io(&to))?;
        }
        match root {
            Some(root) => drop(documents::load(&new, root)?),
            None => drop(enforcer_bundle::load(&new)?),
        }
        let _ = fs::remove_dir_all(&self.place);
        fs::rename(&new, &self.place).map_err(Error::io(&self.place))
    }

    /// Has everything new issued, for ever.
    pub async fn follow(self, roots: watch::Receiver<Roots>, ledger: Arc<Ledger>) {
        let mut remote = self;
        loop {
            let root = roots.borrow().last().clone();
            let asked = tokio::task::spawn_blocking(move || {
                let fetched = remote.fetch(Some(&root));
                let fetched = fetched.and_then(|new| {
                    let documents = new.then(|| documents::load(&remote.place, &root));
                    documents.transpose()
                });
                (remote, fetched)
            });
            let Ok((back, fetched)) = asked.await else {
                return;
            };
            remote = back;
            let issued = match fetched {
                Ok(Some(documents)) => ledger.set_documents(documents).await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            let failed = issued.is_err();
            if let Err(error) = issued {
                tracing::error!(
                    "the documents are not taken, what was issued stays: {}",
                    error.chain()
                );
            }
            if failed || !remote.waits {
                let spread = (PAUSE[1] - PAUSE[0]).mul_f64(rand::random());
                tokio::time::sleep(PAUSE[0] + spread).await;
            }
        }
    }
}
