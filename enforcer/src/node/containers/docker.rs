//! What a container is, by the interface of Docker, which Podman has too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Error;
use crate::bundle::Labels;
use crate::compile::Container;

/// No answer is larger.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A runtime behind a socket.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

/// Of the list, which unlike an inspection does not wait for a container that is being started.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
    #[serde(default, rename = "ImageID")]
    image_id: String,
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
}

impl Docker {
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The container with this id.
    pub async fn find(&self, id: &str) -> Result<Option<Container>, Error> {
        // Hexadecimal digits, so nothing has to be escaped; in the query it would be.
        let filters = format!("%7B%22id%22%3A%5B%22{id}%22%5D%7D");
        let found = self.list(&format!("&filters={filters}")).await?;
        Ok(found.into_iter().find(|it| it.id == id))
    }

    /// All containers.
    pub async fn all(&self) -> Result<Vec<Container>, Error> {
        self.list("").await
    }

    async fn list(&self, filters: &str) -> Result<Vec<Container>, Error> {
        let path = format!("/containers/json?all=true{filters}");
        let listed: Vec<Listed> = self.get(&path).await?.unwrap_or_default();
        let mut all = Vec::with_capacity(listed.len());
        for container in listed {
            let image = format!("/images/{}/json", container.image_id);
            let image: Option<Image> = match container.image_id.as_str() {
                "" => None,
                _ => self.get(&image).await?,
            };
            all.push(described(container, image));
        }
        Ok(all)
    }

    /// `None` if there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        let failed = |error: &dyn std::error::Error| Error::of(&self.socket, error.to_string());
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        let status = answer.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| failed(&*error))?.to_bytes();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body).into_owned();
            return Err(Error::of(&self.socket, format!("{status}: {said}")));
        }
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(|error| failed(&error))
    }
}

fn described(listed: Listed, image: Option<Image>) -> Container {
    let (tags, digests) = image.map_or_else(Default::default, |it| {
        (
            it.repo_tags.unwrap_or_default(),
            it.repo_digests.unwrap_or_default(),
        )
    });
    let mut images: BTreeSet<String> = tags.into_iter().collect();
    images.insert(listed.image);
    images.retain(|it| !it.is_empty());
    let digests = digests.iter().filter_map(|it| it.split_once('@'));
    let digests = digests.map(|(_, digest)| digest.to_owned());
    let id = listed.image_id;
    // Podman leaves the algorithm out.
    let id = match id.starts_with("sha256:") || id.is_empty() {
        true => id,
        false => format!("sha256:{id}"),
    };
    let name = listed.names.into_iter().next().unwrap_or_default();
    Container {
        id: listed.id,
        name: name.trim_start_matches('/').to_owned(),
        labels: listed.labels.unwrap_or_default(),
        images,
        digests: digests.chain([id]).filter(|it| !it.is_empty()).collect(),
        pod: None,
    }
}
