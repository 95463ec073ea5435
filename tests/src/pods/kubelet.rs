//! What kubelet does on a node besides: it lists its pods, and keeps the secrets in their volumes up to date.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Error, Result};
use nix::mount::{self, MsFlags};
use rcgen::CertifiedKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, pki_types::PrivateKeyDer};
use serde_json::{Value, json};

/// Its directory.
pub const DIRECTORY: &str = "/srv/t/kubelet";

/// The file with the authority of its certificate, and that with the token that it knows the daemon by.
pub const AUTHORITY: &str = "/srv/t/kubelet-ca.pem";
pub const TOKEN: &str = "/srv/t/kubelet-token";

/// Lists pods over HTTPS to who has the token, as kubelet does.
pub struct Kubelet {
    /// Where.
    pub address: SocketAddr,
    pods: Arc<Mutex<Vec<Value>>>,
}

impl Kubelet {
    /// Starts without pods. Ends with this process.
    pub fn start() -> Result<Self> {
        let token = format!("{:032x}", rand::random::<u128>());
        fs::write(TOKEN, format!("{token}\n"))?;
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        fs::write(AUTHORITY, cert.pem())?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(Error::msg)?;
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let pods = Arc::<Mutex<Vec<Value>>>::default();
        let listed = pods.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let items = listed.lock().map(|it| it.clone()).unwrap_or_default();
                // One who does not trust it, or goes on, is no matter.
                let _ = answer(stream, tls.clone(), &token, &items);
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

fn answer(stream: TcpStream, tls: Arc<ServerConfig>, token: &str, items: &[Value]) -> Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
    // The request is short, and there is only one.
    let mut request = [0; 4096];
    let length = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
    let knows = request.contains(&format!("authorization: bearer {token}\r\n"));
    let (status, body) = match knows && request.starts_with("get /pods ") {
        true => (
            "200 OK",
            json!({"kind": "PodList", "apiVersion": "v1", "items": items}),
        ),
        false => ("401 Unauthorized", Value::Null),
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
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
