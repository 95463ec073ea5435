//! Containers become what they are to the bundle, as soon as their runtimes say what they are.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use enforcer_common::ids::{CgroupId, IdentityId};
use enforcer_common::tables::{Cgroup, Versioned};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::located::Located;
use super::programs::Programs;
use super::{Engine, Error, InForce};
use crate::bundle::{Credential, Source};
use crate::compile::{Container, Pods, Policy};
use crate::fanotify::hold::Hold;
use crate::kernel::at_root;
use crate::kernel::maps::Maps;
use crate::node::cgroups;
use crate::node::containers::{self, Exempt, Place, Runtimes, Starting, is_pod, place_of};
use crate::node::pods::{self, Listed};
use crate::record::model::Instance;

/// How often a runtime is asked of a new container that it does not know yet, and how many times.
const ASK_EVERY: Duration = Duration::from_millis(100);
const ASK_TIMES: u32 = 50;
/// How often it is looked for the root of a new container.
const ROOT_EVERY: Duration = Duration::from_millis(5);

/// What is to be known of containers, and from whom.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The runtimes' sockets.
    pub runtimes: Vec<PathBuf>,
    /// Kubelet's directory.
    pub kubelet: PathBuf,
    /// Where kubelet lists its pods.
    pub pods: Option<pods::Settings>,
    /// For how long a runtime is made to wait until it is known what it starts; zero: not at all.
    pub hold: Duration,
    /// Namespaces whose containers are not waited for.
    pub exempt: Vec<String>,
    /// The runtimes' programs, which are made to wait.
    pub programs: Vec<PathBuf>,
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A runtime.
    #[error(transparent)]
    Runtime(#[from] containers::Error),
    /// Kubelet.
    #[error(transparent)]
    Kubelet(#[from] pods::Error),
}

/// What a runtime says of a container.
#[derive(Debug)]
pub struct Answer {
    place: Place,
    said: Said,
}

#[derive(Debug)]
enum Said {
    /// What it is.
    Known(Container),
    /// No runtime knows it, so far.
    NotYet,
    /// No runtime knows it; the reason, if one did not answer.
    Unknown(Option<containers::Error>),
}

/// The containers of the node.
pub struct Containers {
    runtimes: Arc<Runtimes>,
    pub(super) known: BTreeMap<String, Container>,
    /// Their programs, by the same.
    pub(super) programs: BTreeMap<String, Programs>,
    /// Their files that are credentials, by the same.
    pub(super) located: BTreeMap<String, Located>,
    /// One of those has gone that had any.
    left_files: bool,
    /// The paths of their cgroups.
    paths: HashMap<CgroupId, String>,
    /// Those that no runtime knows, by their cgroups' paths, and whether that was told.
    unknown: BTreeMap<String, (Place, bool)>,
    starting: Arc<Starting>,
    hold: Option<Hold>,
    limit: Duration,
    answers: mpsc::UnboundedSender<Answer>,
    failure: Option<String>,
    listed: Option<Listed>,
    /// There is another pod.
    made: Arc<Notify>,
}

/// What comes from runtimes and from kubelet.
pub struct Heard {
    answers: mpsc::UnboundedReceiver<Answer>,
    lists: Option<mpsc::UnboundedReceiver<Result<Listed, pods::Error>>>,
}

/// One thing of it.
pub enum Word {
    /// What a runtime says of a container.
    Container(Box<Answer>),
    /// What kubelet says of its pods.
    Pods(Result<Listed, pods::Error>),
}

impl Heard {
    /// The next one.
    pub async fn next(&mut self) -> Option<Word> {
        let lists = async {
            match &mut self.lists {
                Some(lists) => lists.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = self.answers.recv() => answer.map(|it| Word::Container(Box::new(it))),
            list = lists => list.map(Word::Pods),
        }
    }
}

impl Containers {
    /// No runtime is asked yet.
    ///
    /// # Errors
    /// A socket that cannot be one, or kubelet's authority is missing.
    pub fn new(settings: Settings) -> Result<(Self, Heard), SettingsError> {
        let made = Arc::new(Notify::new());
        let lists = settings.pods.map(|it| pods::follow(it, made.clone()));
        let runtimes = Runtimes::at(&settings.runtimes, &settings.kubelet)?;
        let (answers, answered) = mpsc::unbounded_channel();
        let exempt = Exempt::new(settings.exempt, &settings.runtimes);
        let starting = Arc::new(Starting::but_for(exempt));
        let limit = settings.hold;
        let hold = match limit.is_zero() {
            true => None,
            false => match Hold::start(settings.programs, starting.clone(), limit) {
                Ok(hold) => Some(hold),
                Err(error) => {
                    tracing::warn!(
                        "container runtimes are not made to wait: {}",
                        crate::chain(&error)
                    );
                    None
                }
            },
        };
        let containers = Self {
            runtimes: Arc::new(runtimes),
            known: BTreeMap::new(),
            programs: BTreeMap::new(),
            located: BTreeMap::new(),
            left_files: false,
            paths: HashMap::new(),
            unknown: BTreeMap::new(),
            starting,
            hold,
            limit,
            answers,
            failure: None,
            listed: None,
            made,
        };
        let heard = Heard {
            answers: answered,
            lists: lists.transpose()?,
        };
        Ok((containers, heard))
    }

    /// A container has gone.
    fn forget(&mut self, path: &str) {
        self.known.remove(path);
        self.programs.remove(path);
        self.unknown.remove(path);
        self.starting.end(path);
        let located = self.located.remove(path).unwrap_or_default();
        self.left_files |= located.values().any(|found| !found.is_empty());
    }

    /// Those that are being started.
    pub fn starting(&self) -> &Arc<Starting> {
        &self.starting
    }

    /// All that are known, by the paths of their cgroups.
    pub(super) fn known(&self) -> &BTreeMap<String, Container> {
        &self.known
    }

    /// What kubelet lists of pods and their volumes.
    pub(super) fn pods(&self) -> Option<&Pods> {
        self.listed.as_ref().map(|it| &it.pods)
    }

    /// Adds the service accounts that kubelet has listed. Whether there were any to add.
    fn add_accounts(&mut self) -> bool {
        let mut added = false;
        for container in self.known.values_mut() {
            let Some(pod) = &mut container.pod else {
                continue;
            };
            let listed = self
                .listed
                .as_ref()
                .and_then(|it| it.accounts.get(&pod.uid));
            if pod.service_account.is_none() && listed.is_some() {
                pod.service_account = listed.cloned();
                added = true;
            }
        }
        added
    }

    /// The container that the cgroup at `path` is, or lies in.
    pub(super) fn at(&self, path: &str) -> Option<&Container> {
        self.known.get(&place_of(path)?.path)
    }

    /// The path of the cgroup of the one container that `name` means.
    fn named(&self, name: &str) -> Result<&str, String> {
        let means = |container: &Container| match &container.pod {
            Some(pod) => {
                let pod = format!("{}/{}", pod.namespace, pod.name);
                name == pod || name == format!("{pod}/{}", container.name)
            }
            None => name == container.name,
        };
        let mut found = self.known.iter().filter(|(_, it)| means(it));
        match (found.next(), found.next()) {
            (Some((path, _)), None) => Ok(path),
            (Some((_, one)), Some((_, other))) => Err(format!(
                "`{name}` has several containers, as {} and {}: add `/` and the name of one",
                one.name, other.name
            )),
            (None, _) => Err(format!(
                "no running container `{name}`: expected NAMESPACE/POD/CONTAINER, NAMESPACE/POD, or the name of one of no pod; {} are known",
                self.known.len()
            )),
        }
    }

    /// What the cgroup at `path` means to a bundle, and whether that is known.
    pub(super) fn meaning(&self, policy: &Policy, path: &str) -> IdentityId {
        let plain = || policy.identity_of(path);
        if !policy.asks_for_containers() {
            return plain();
        }
        let Some(place) = place_of(path) else {
            return plain();
        };
        let Some(container) = self.known.get(&place.path) else {
            return plain().unclassified();
        };
        let identity = policy
            .identity_of_container(path, container)
            .or_else(|| policy.identity_of_container(&place.path, container));
        identity.unwrap_or_else(plain)
    }

    /// Asks the runtimes so many times, until one knows it.
    fn ask(&self, place: Place, times: u32) {
        let (runtimes, answers) = (self.runtimes.clone(), self.answers.clone());
        tokio::spawn(async move {
            let mut failure = None;
            for attempt in 0..times {
                let said = match runtimes.find(&place).await {
                    Ok(Some(container)) => Said::Known(container),
                    // Nobody waits for what a runtime does not know: it makes the one that stands for a pod known only
                    // once that runs.
                    Ok(None) if attempt == 0 => Said::NotYet,
                    Ok(None) => {
                        tokio::time::sleep(ASK_EVERY).await;
                        continue;
                    }
                    Err(error) => {
                        failure = Some(error);
                        tokio::time::sleep(ASK_EVERY).await;
                        continue;
                    }
                };
                let ends = matches!(said, Said::Known(_));
                let place = place.clone();
                if answers.send(Answer { place, said }).is_err() || ends {
                    return;
                }
            }
            let said = Said::Unknown(failure);
            let _ = answers.send(Answer { place, said });
        });
    }

    /// Has it told again that the container at this place is known, a moment later.
    fn ask_again(&self, place: Place, container: Container) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ROOT_EVERY).await;
            let said = Said::Known(container);
            let _ = answers.send(Answer { place, said });
        });
    }

    /// For `status`.
    pub(super) fn status(&self) -> Value {
        let programs = self.hold.iter().flat_map(Hold::programs);
        let hold = json!({
            "milliseconds": self.limit.as_millis(),
            "programs": programs.collect::<Vec<_>>(),
        });
        json!({
            "known": self.known.len(),
            "unknown": self.unknown.keys().collect::<Vec<_>>(),
            "runtimes": self.runtimes.status(),
            "hold": hold,
            "failure": self.failure,
            "pods": self.pods().map(|it| it.pods.len()),
        })
    }
}

impl Engine {
    /// Learns what the containers are that run already, before a bundle says anything of them.
    pub async fn learn_containers(&mut self) -> Result<(), Error> {
        let found = cgroups::scan(&at_root::path()?).map_err(Error::Cgroups)?;
        let mut places = Vec::new();
        for cgroup in found {
            if let Some(place) = place_of(&cgroup.path).filter(|it| it.path == cgroup.path) {
                self.containers.paths.insert(cgroup.id, cgroup.path);
                places.push(place);
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        let (known, failures) = self.containers.runtimes.all(&places).await;
        for failure in &failures {
            tracing::warn!("{failure}");
        }
        self.containers.failure = failures.first().map(ToString::to_string);
        for place in places {
            if !known.contains_key(&place.path) {
                self.containers.ask(place.clone(), ASK_TIMES);
                let unknown = &mut self.containers.unknown;
                unknown.insert(place.path.clone(), (place, false));
            }
        }
        tracing::info!(known = known.len(), "containers that run already");
        self.containers.known = known;
        self.containers.add_accounts();
        Ok(())
    }

    /// A cgroup was made. What it is, the kernel has noted by its own name; this says exactly what it means where names
    /// nest, and asks what it is if it is a container.
    pub(super) fn cgroup_created(&mut self, id: CgroupId, path: &str) -> Result<(), Error> {
        if is_pod(path) {
            self.containers.made.notify_one();
        }
        let own = place_of(path).filter(|place| place.path == path);
        if let Some(place) = own {
            self.containers.paths.insert(id, path.to_owned());
            // It may have been learned at the start, before this notice came.
            match self.containers.known.contains_key(path) {
                true => drop(self.containers.starting.end(path)),
                false => self.containers.ask(place, ASK_TIMES),
            }
        }
        let Some(in_force) = &self.in_force else {
            return Ok(());
        };
        let exact = self.containers.meaning(&in_force.policy, path);
        let generation = in_force.generation;
        let mut maps = Maps(&mut self.loaded.ebpf);
        let known: Option<Cgroup> = maps.get("CGROUPS", &id)?;
        if let Some(mut cgroup) = known
            && cgroup.identity.at(generation) != exact
        {
            cgroup.identity = Versioned::constant(exact);
            maps.put_known("CGROUPS", &id, &cgroup)?;
        }
        Ok(())
    }

    /// The path of the cgroup of a container, by the name that people give it.
    pub fn cgroup_of_container(&self, name: &str) -> Result<String, String> {
        self.containers.named(name).map(str::to_owned)
    }

    /// Where a process in this cgroup belongs, if that is still known.
    pub(super) fn instance_of(&self, id: CgroupId) -> Option<Instance> {
        let container_at = |path: &str| self.containers.at(path);
        self.cgroups.instance_of(id, container_at)
    }

    /// A cgroup is gone.
    pub(super) fn cgroup_removed(&mut self, id: CgroupId) {
        if let Some(path) = self.containers.paths.remove(&id) {
            self.containers.forget(&path);
        }
    }

    /// Takes what was heard.
    pub async fn heard(&mut self, word: Word) {
        match word {
            Word::Container(answer) => self.described(*answer).await,
            Word::Pods(Ok(listed)) => {
                let before = self.containers.listed.replace(listed);
                let volumes = |it: &Listed| it.pods.clone();
                let moved = before.as_ref().map(volumes) != self.containers.pods().cloned();
                let asks = |it: &InForce| it.bundle.credentials.iter().any(of_pods);
                let concerns = moved && self.in_force.as_ref().is_some_and(asks);
                if self.containers.add_accounts() || concerns {
                    self.reapply().await;
                }
            }
            Word::Pods(Err(error)) => {
                tracing::warn!("{error}; what it listed before stays");
                self.containers.failure = Some(error.to_string());
            }
        }
    }

    async fn described(&mut self, answer: Answer) {
        let Answer { place, said } = answer;
        let path = place.path.clone();
        match said {
            Said::Known(container) => {
                if let Some(in_force) = &self.in_force
                    && (self.containers).awaits_root(&in_force.bundle, &path, &container)
                {
                    self.containers.ask_again(place, container);
                    return;
                }
                self.containers.failure = None;
                self.containers.unknown.remove(&path);
                self.containers.known.insert(path.clone(), container);
                self.containers.add_accounts();
                if let Err(error) = self.classify(&path).await {
                    tracing::error!(
                        cgroup = path,
                        "what a container is could not be written: {}",
                        crate::chain(&error)
                    );
                }
                self.tell_classified(&path);
                // It may have ended before it was known what it is.
                if !is_there(&path) {
                    self.containers.forget(&path);
                }
            }
            Said::NotYet => {
                let unknown = &mut self.containers.unknown;
                unknown.entry(path.clone()).or_insert((place, false));
                self.containers.starting.end(&path);
            }
            Said::Unknown(failure) => {
                self.containers.starting.end(&path);
                if !is_there(&path) {
                    self.containers.unknown.remove(&path);
                    return;
                }
                let told = self.containers.unknown.insert(path.clone(), (place, true));
                let reason = failure.map_or_else(
                    || "no container runtime knows it".to_owned(),
                    |failure| failure.to_string(),
                );
                if told.is_none_or(|(_, told)| !told) {
                    self.log.write(
                        "container-unclassified",
                        json!({"cgroup": path, "reason": reason}),
                    );
                }
                self.containers.failure = Some(reason);
            }
        }
    }

    /// Tells what came of a container's start.
    fn tell_classified(&mut self, path: &str) {
        let Some(ended) = self.containers.starting.end(path) else {
            // It ran already, or was let go on.
            return;
        };
        self.log.metrics().classified(ended.took.as_secs_f64());
        let told = self.containers.known.get(path).map(|container| {
            let instance = cgroups::in_container(path, container);
            json!({
                "cgroup": path,
                "pod": instance.pod,
                "container": instance.container,
                "tookMs": ended.took.as_secs_f64() * 1e3,
                "held": ended.held,
                "late": ended.late,
                "exempt": ended.exempt,
            })
        });
        if let Some(told) = told {
            self.log.write("container-classified", told);
        }
    }

    /// Writes what the container with the cgroup at `path` is.
    async fn classify(&mut self, path: &str) -> Result<(), Error> {
        self.cgroups.forget_below(path);
        let Some(policy) = self.in_force.as_ref().map(|it| it.policy.clone()) else {
            return Ok(());
        };
        self.protect_inside(&policy, path)?;
        if !policy.asks_for_containers() {
            return Ok(());
        }
        let is_new = |it: &Container| {
            policy.identity_of_container(path, it).is_none() || self.asks_for_programs_in(it)
        };
        if self.containers.known.get(path).is_none_or(is_new) {
            // The first of its kind has to get a number, and everybody who belongs to a workload by it; each has programs
            // of its own.
            self.reapply().await;
            return Ok(());
        }
        let below = at_root::path()?.join(path.trim_start_matches('/'));
        // The container's own first: whatever is made below it from then on is like it.
        let found = match cgroups::scan(&below) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(Error::Cgroups)?,
        };
        for cgroup in found {
            let own = format!("{path}{}", cgroup.path.trim_end_matches('/'));
            let identity = self.containers.meaning(&policy, &own);
            let mut maps = Maps(&mut self.loaded.ebpf);
            if let Some(mut known) = maps.get::<CgroupId, Cgroup>("CGROUPS", &cgroup.id)? {
                known.identity = Versioned::constant(identity);
                maps.put_known("CGROUPS", &cgroup.id, &known)?;
            }
        }
        Ok(())
    }

    /// Asks again of what no runtime knew, marks programs that were replaced, and protects no more what has gone with its
    /// container: what others have of it, or the host, stays protected throughout.
    pub async fn look_after_containers(&mut self) {
        if std::mem::take(&mut self.containers.left_files) {
            self.reapply().await;
        }
        if let Some(hold) = &mut self.containers.hold {
            hold.mark();
        }
        for (place, _) in self.containers.unknown.values() {
            self.containers.ask(place.clone(), 1);
        }
    }
}

/// Whether some of it is in volumes of pods.
fn of_pods(credential: &Credential) -> bool {
    credential.sources.iter().any(Source::is_of_pods)
}

/// Whether there still is a cgroup at this path.
fn is_there(path: &str) -> bool {
    let there = at_root::path().map(|root| root.join(path.trim_start_matches('/')).exists());
    there.unwrap_or(true)
}
