//! Making pods, as kubelet does: of the Container Runtime Interface what that takes. The numbers are the interface's.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use prost::Message;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The namespaces of the node.
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PodSecurity {
    #[prost(message, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct PodLinux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, tag = "2")]
    security: Option<PodSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct PodConfig {
    #[prost(message, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(message, tag = "8")]
    linux: Option<PodLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, tag = "1")]
    config: Option<PodConfig>,
}

/// Requests and answers with nothing but an id.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerLinux {
    #[prost(message, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, tag = "2")]
    image: Option<Name>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout_s: i64,
}

/// What a command in a container came to.
#[derive(Clone, PartialEq, Message)]
pub struct Ended {
    /// Its standard output.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// Its standard error.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// How it ended.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// A pod, running.
#[derive(Clone)]
pub struct Pod {
    id: String,
    config: PodConfig,
}

impl Pod {
    /// Where what its containers print goes.
    pub fn logs(&self) -> &Path {
        Path::new(&self.config.log_directory)
    }
}

/// What a pod shall be.
pub struct NewPod<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a [(&'a str, &'a str)],
    /// Where what its containers print goes.
    pub logs: &'a Path,
}

/// A container that was made and maybe started.
#[derive(Clone)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
}

/// What a container shall be.
pub struct NewContainer<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// Its image.
    pub image: &'a str,
    /// What it runs.
    pub command: &'a [&'a str],
    /// Directories of the host, and where it sees them, only for reading.
    pub mounts: &'a [(&'a str, &'a str)],
}

/// A container runtime.
#[derive(Clone)]
pub struct Runtime {
    service: Grpc<Channel>,
    calls: Arc<tokio::runtime::Runtime>,
}

impl Runtime {
    /// Connects to it.
    pub fn connect(socket: &Path) -> Result<Self> {
        let calls = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        let channel = calls.block_on(endpoint.connect())?;
        Ok(Self {
            service: Grpc::new(channel),
            calls: Arc::new(calls),
        })
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path)?;
        let mut service = self.service.clone();
        self.calls.block_on(async {
            service.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = service.unary(Request::new(request), path, codec).await;
            let answer = answer.with_context(|| format!("{method} failed"))?;
            Ok(answer.into_inner())
        })
    }

    /// Whether it can run pods.
    pub fn answers(&self) -> Result<()> {
        let _: Empty = self.call("Status", Empty {})?;
        Ok(())
    }

    /// Runs a pod without containers.
    pub fn run(&self, pod: &NewPod<'_>) -> Result<Pod> {
        let pairs = pod.labels.iter();
        let labels = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let namespaces = Namespaces {
            network: NODE,
            pid: 0,
        };
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: pod.name.to_owned(),
                uid: pod.uid.to_owned(),
                namespace: pod.namespace.to_owned(),
            }),
            log_directory: pod.logs.display().to_string(),
            labels: labels.collect(),
            linux: Some(PodLinux {
                cgroup_parent: format!("/kubepods/burstable/pod{}", pod.uid),
                security: Some(PodSecurity {
                    namespaces: Some(namespaces),
                }),
            }),
        };
        let request = RunPod {
            config: Some(config.clone()),
        };
        let Id { id } = self.call("RunPodSandbox", request)?;
        Ok(Pod { id, config })
    }

    /// Makes a container in a pod. What it prints goes to `NAME.log` among the pod's logs.
    pub fn create(&self, pod: &Pod, container: &NewContainer<'_>) -> Result<Container> {
        let mounts = container.mounts.iter().map(|(host, inside)| Mount {
            container_path: (*inside).to_owned(),
            host_path: (*host).to_owned(),
            readonly: true,
        });
        let config = ContainerConfig {
            metadata: Some(Name {
                name: container.name.to_owned(),
            }),
            image: Some(Name {
                name: container.image.to_owned(),
            }),
            command: container
                .command
                .iter()
                .map(|it| (*it).to_owned())
                .collect(),
            mounts: mounts.collect(),
            labels: HashMap::new(),
            log_path: format!("{}.log", container.name),
            linux: Some(ContainerLinux {
                security: Some(ContainerSecurity {
                    namespaces: Some(Namespaces {
                        network: NODE,
                        // Of its own.
                        pid: 1,
                    }),
                }),
            }),
        };
        let request = CreateContainer {
            pod: pod.id.clone(),
            config: Some(config),
            pod_config: Some(pod.config.clone()),
        };
        let Id { id } = self.call("CreateContainer", request)?;
        Ok(Container { id })
    }

    /// Starts it.
    pub fn start(&self, container: &Container) -> Result<()> {
        let id = container.id.clone();
        let _: Empty = self.call("StartContainer", Id { id })?;
        Ok(())
    }

    /// Runs a command in it, and waits for its end.
    pub fn exec(&self, container: &Container, command: &[&str]) -> Result<Ended> {
        let request = Exec {
            container: container.id.clone(),
            command: command.iter().map(|it| (*it).to_owned()).collect(),
            timeout_s: 60,
        };
        self.call("ExecSync", request)
    }

    /// Ends a pod with all its containers.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        let id = || Id { id: pod.id.clone() };
        let _: Empty = self.call("StopPodSandbox", id())?;
        let _: Empty = self.call("RemovePodSandbox", id())?;
        Ok(())
    }
}
