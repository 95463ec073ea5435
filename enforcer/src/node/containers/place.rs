//! Which cgroups are containers, by the paths that runtimes give them.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// The cgroup of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its path from the cgroup root, without what the container has below.
    pub path: String,
    /// The runtime's id.
    pub id: String,
    /// The uid of the pod, with dashes, as Kubernetes writes it; of a static pod the hash of its definition.
    pub pod: Option<String>,
}

impl Place {
    /// Whether it is Podman's, which locks a container while it starts it, and says nothing of it until then: whoever has the
    /// start wait for what it says would wait for himself.
    #[must_use]
    pub fn is_locked_at_start(&self) -> bool {
        let name = self.path.rsplit('/').next();
        name.is_some_and(|name| name.starts_with("libpod-"))
    }
}

/// Names as systemd escapes them.
const SLICES: &str = r"(?:/[A-Za-z0-9:_.@\\-]+\.slice)*";
const ID: &str = "(?<id>[0-9a-f]{64})";
const POD: &str = "(?<pod>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})";

/// Anchored at the host, where only it gives names: the outermost container counts, and what a user's own service manager
/// or a unit with a cgroup of its own has below is as they please. Those of runtimes' monitors are none.
static FORMS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let forms = [
        // Kubelet with the systemd driver: containerd, CRI-O, cri-dockerd, nerdctl.
        format!(
            r"^{SLICES}/(?:kubelet-)?kubepods(?:-(?:besteffort|burstable))?-pod{POD}\.slice/(?:cri-containerd|crio|docker|nerdctl)-{ID}\.scope"
        ),
        // With the cgroupfs driver.
        format!(r"^(?:/kubelet)?/kubepods(?:/(?:besteffort|burstable))?/pod{POD}/(?:crio-)?{ID}"),
        // Docker, nerdctl, Podman and CRI-O by themselves, with the systemd driver.
        format!(r"^{SLICES}/(?:docker|nerdctl|libpod|crio)-{ID}\.scope"),
        // And with cgroupfs.
        format!(r"^/(?:docker|actions_job)/{ID}"),
        format!(r"^/libpod_parent(?:/[0-9a-f]{{64}})?/libpod-{ID}"),
        format!(r"^/crio/crio-{ID}"),
    ];
    let whole = forms.iter().map(|form| format!("(?<own>{form})(?:/.*)?$"));
    whole
        .map(|form| form.replace("(?<own>^", "^(?<own>"))
        .filter_map(|form| Regex::new(&form).ok())
        .collect()
});

/// The cgroups of pods, which kubelet makes before anything else of a pod.
static PODS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let form = format!(
        r"^(?:{SLICES}/(?:kubelet-)?kubepods(?:-(?:besteffort|burstable))?-pod{POD}\.slice|(?:/kubelet)?/kubepods(?:/(?:besteffort|burstable))?/pod[0-9a-f-]+)$"
    );
    Regex::new(&form).ok()
});

/// Whether this is the cgroup of a pod.
#[must_use]
pub fn is_pod(path: &str) -> bool {
    PODS.as_ref().is_some_and(|form| form.is_match(path))
}

/// The container that the cgroup at `path` is, or lies in; `None` if it is none that the host put there.
#[must_use]
pub fn place_of(path: &str) -> Option<Place> {
    let found = FORMS.iter().find_map(|form| form.captures(path))?;
    let text = |found: &Captures<'_>, name| found.name(name).map(|it| it.as_str().to_owned());
    Some(Place {
        path: text(&found, "own")?,
        id: text(&found, "id")?,
        pod: text(&found, "pod").map(|uid| uid.replace('_', "-")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const UID: &str = "1399d9c7-c86f-4371-8568-07b3d32258a4";
    const HASH: &str = "09a70ae9ccc491e651e5c773579b3490";

    /// With `A`, `B`, `UID` (and with underscores) and `HASH` filled in.
    fn path(text: &str) -> String {
        text.replace("{A}", A)
            .replace("{B}", B)
            .replace("{UID}", UID)
            .replace("{U_I_D}", &UID.replace('-', "_"))
            .replace("{HASH}", HASH)
    }

    #[test]
    fn forms_all_compile() {
        assert_eq!(FORMS.len(), 6);
    }

    #[test]
    fn containers_as_runtimes_place_them() {
        for (text, id, pod) in [
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_I_D}.slice/cri-containerd-{A}.scope",
                A,
                Some(UID),
            ),
            (
                "/kubepods.slice/kubepods-pod{U_I_D}.slice/cri-containerd-{A}.scope",
                A,
                Some(UID),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_I_D}.slice/crio-{A}.scope/container",
                A,
                Some(UID),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/cri-containerd-{A}.scope",
                A,
                Some(HASH),
            ),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{U_I_D}.slice/cri-containerd-{A}.scope",
                A,
                Some(UID),
            ),
            ("/kubepods/besteffort/pod{UID}/{A}", A, Some(UID)),
            ("/kubepods/pod{UID}/{A}", A, Some(UID)),
            ("/kubepods/besteffort/pod{UID}/crio-{A}", A, Some(UID)),
            ("/system.slice/docker-{A}.scope", A, None),
            ("/system.slice/docker-{A}.scope/init.scope", A, None),
            ("/docker/{A}", A, None),
            ("/actions_job/{A}", A, None),
            ("/machine.slice/libpod-{A}.scope/container", A, None),
            (
                "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                A,
                None,
            ),
            ("/libpod_parent/libpod-{A}", A, None),
            ("/system.slice/nerdctl-{A}.scope", A, None),
            // The outermost one, where one runs in another.
            (
                "/system.slice/docker-{B}.scope/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_I_D}.slice/docker-{A}.scope",
                B,
                None,
            ),
            ("/docker/{B}/kubepods/besteffort/pod{UID}/{A}", B, None),
        ] {
            let path = path(text);
            let place = place_of(&path).unwrap_or_else(|| panic!("{path} is a container"));
            assert_eq!(
                (place.id.as_str(), place.pod.as_deref()),
                (id, pod),
                "{path}"
            );
            assert!(
                path.starts_with(&place.path) && place.path.contains(id),
                "{path}"
            );
            assert_eq!(place_of(&place.path), Some(place), "{path}");
        }
    }

    #[test]
    fn whoever_has_a_cgroup_of_its_own_names_what_is_below() {
        for text in [
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
            "/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod{U_I_D}.slice/cri-containerd-{A}.scope",
            "/system.slice/myapp.service/libpod-payload-{A}",
            "/system.slice/myapp.service/docker/{A}",
            "/system.slice/myapp.service/kubepods/pod{UID}/{A}",
            "/podruntime.slice/containerd.service/kubepods-burstable-pod{U_I_D}.slice:cri-containerd:{A}",
        ] {
            assert_eq!(place_of(&path(text)), None, "{text}");
        }
    }

    #[test]
    fn cgroups_of_pods() {
        for (text, is) in [
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_I_D}.slice",
                true,
            ),
            ("/kubepods.slice/kubepods-pod{HASH}.slice", true),
            ("/kubepods/besteffort/pod{UID}", true),
            ("/kubepods/pod{UID}", true),
            ("/kubepods/besteffort", false),
            ("/kubepods/pod{UID}/{A}", false),
            ("/system.slice/a.service/kubepods/pod{UID}", false),
        ] {
            assert_eq!(is_pod(&path(text)), is, "{text}");
        }
    }

    #[test]
    fn what_is_no_container() {
        for text in [
            "/",
            "/system.slice/nginx.service",
            "/system.slice/docker.service",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_I_D}.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_I_D}.slice/crio-conmon-{A}.scope",
            "/machine.slice/libpod-conmon-{A}.scope",
            "/libpod_parent/conmon",
            "/system.slice/docker-{A}.scope.slice",
            "/system.slice/docker-{A}x.scope",
            "/docker/{A}0",
        ] {
            assert_eq!(place_of(&path(text)), None, "{text}");
        }
    }
}
