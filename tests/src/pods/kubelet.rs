//! What kubelet does on a node besides: it lists its pods, and keeps the secrets in their volumes up to date.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result};
use nix::mount::{self, MsFlags};
use serde_json::{Value, json};

/// Its directory.
pub const DIRECTORY: &str = "/srv/t/kubelet";

/// Lists pods over HTTP, as kubelet does on its port for reading.
pub struct Kubelet {
    /// Where.
    pub address: SocketAddr,
    pods: Arc<Mutex<Vec<Value>>>,
}

impl Kubelet {
    /// Starts without pods. Ends with this process.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let pods = Arc::<Mutex<Vec<Value>>>::default();
        let listed = pods.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = stream;
                // The request is short, and there is only one.
                let _ = stream.read(&mut [0; 4096]);
                let items = listed.lock().map(|it| it.clone()).unwrap_or_default();
                let body =
                    json!({"kind": "PodList", "apiVersion": "v1", "items": items}).to_string();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Ok(Self { address, pods })
    }

    /// Admits a pod with a secret in a volume of the same name. The result is the volume.
    pub fn admit(&self, uid: &str, namespace: &str, account: &str, secret: &str) -> Result<Volume> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": namespace, "uid": uid},
            "spec": {
                "serviceAccountName": account,
                "volumes": [{"name": secret, "secret": {"secretName": secret}}],
            },
        });
        if let Ok(mut pods) = self.pods.lock() {
            pods.push(pod);
        }
        Volume::new(uid, secret)
    }
}

/// A volume with one key, as kubelet writes it: each version is a directory of its own, and a link leads to the newest.
pub struct Volume {
    directory: PathBuf,
    version: u64,
}

impl Volume {
    fn new(uid: &str, secret: &str) -> Result<Self> {
        let directory = Path::new(DIRECTORY)
            .join("pods")
            .join(uid)
            .join("volumes/kubernetes.io~secret")
            .join(secret);
        fs::create_dir_all(&directory)?;
        // Each is a file system of its own, in memory.
        let (kind, mode) = (Some("tmpfs"), Some("mode=755"));
        mount::mount(kind, &directory, kind, MsFlags::empty(), mode)?;
        let mut volume = Self {
            directory,
            version: 0,
        };
        volume.rotate()?;
        symlink("..data/key", volume.directory.join("key"))?;
        Ok(volume)
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes the next version, and removes the one before.
    pub fn rotate(&mut self) -> Result<()> {
        let name = |version| format!("..2026_11_27_10_00_00.{version:09}");
        self.version += 1;
        let new = self.directory.join(name(self.version));
        fs::create_dir(&new)?;
        fs::write(new.join("key"), format!("secret number {}\n", self.version))?;
        let link = self.directory.join("..data_tmp");
        symlink(name(self.version), &link)?;
        fs::rename(&link, self.directory.join("..data"))?;
        let old = self.directory.join(name(self.version - 1));
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("{}", old.display()))?;
        }
        Ok(())
    }
}
