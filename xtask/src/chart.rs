//! The plain manifests, rendered from the Helm chart.
//!
//! Debian has no Helm. The chart keeps to what Go's own templates have and the few functions below, so that any engine
//! for those can render it; where `helm` is installed, the tests compare with it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow};
use gtmpl::{FuncError, Template, Value};
use sha2::{Digest as _, Sha256};

use crate::paths;

/// What the plain manifests are rendered with.
const RELEASE: &str = "enforcer";

/// The chart.
fn chart() -> PathBuf {
    paths::workspace().join("deploy/helm/enforcer")
}

/// Where the plain manifests are.
fn manifests() -> PathBuf {
    paths::workspace().join("deploy/kubernetes/enforcer.yaml")
}

/// `cargo xtask chart`: renders the manifests.
pub fn run() -> Result<()> {
    let to = manifests();
    fs::write(&to, plain()?).with_context(|| format!("cannot write {}", to.display()))?;
    println!("{}", to.display());
    Ok(())
}

/// The manifests with the chart's own values, in a namespace of their own.
fn plain() -> Result<String> {
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {RELEASE}\n  labels:\n    pod-security.kubernetes.io/enforce: privileged\n"
    );
    let head = "# Rendered by `cargo xtask chart` from deploy/helm/enforcer with its own values: edit those.\n";
    Ok(format!(
        "{head}{namespace}{}",
        render(&serde_json::json!({}))?
    ))
}

/// What the chart renders to with these values besides its own: one document after another, by the names of the
/// templates.
fn render(values: &serde_json::Value) -> Result<String> {
    let mut all: serde_json::Value = yaml("values.yaml")?;
    if let (Some(all), Some(more)) = (all.as_object_mut(), values.as_object()) {
        all.extend(more.clone());
    }
    let about: serde_json::Value = yaml("Chart.yaml")?;
    let context = serde_json::json!({
        "Values": all,
        "Chart": {"AppVersion": about["appVersion"]},
        "Release": {"Name": RELEASE, "Namespace": RELEASE},
    });
    let context = gtmpl::Context::from(value(&context));
    let mut templates = BTreeMap::new();
    for entry in fs::read_dir(chart().join("templates"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "yaml") {
            templates.insert(path.clone(), fs::read_to_string(&path)?);
        }
    }
    let mut documents = String::new();
    for (path, text) in templates {
        let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", path.display());
        let mut template = Template::default();
        for (name, function) in FUNCTIONS {
            template.add_func(name, *function);
        }
        template.parse(&text).map_err(|error| failed(&error))?;
        let rendered = template.render(&context).map_err(|error| failed(&error))?;
        // What these values do not ask for.
        if rendered.trim().is_empty() {
            continue;
        }
        documents.push_str("---\n");
        documents.push_str(rendered.trim_start());
    }
    Ok(documents)
}

fn yaml(name: &str) -> Result<serde_json::Value> {
    let path = chart().join(name);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// What Helm has beside Go's own functions, as far as the chart needs it.
const FUNCTIONS: &[(&str, gtmpl::Func)] = &[
    ("nindent", nindent),
    ("quote", |args| {
        text(args, 0).map(|it| format!("{it:?}").into())
    }),
    ("sha256sum", |args| {
        let digest = Sha256::digest(text(args, 0)?);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(hex.into())
    }),
    ("toYaml", |args| {
        let value = json(args.first().unwrap_or(&Value::Nil));
        let text =
            serde_saphyr::to_string(&value).map_err(|error| FuncError::Other(error.into()))?;
        Ok(text.trim_end().to_owned().into())
    }),
];

/// A line break, and then the text so far to the right.
fn nindent(args: &[Value]) -> Result<Value, FuncError> {
    let Some(Value::Number(width)) = args.first() else {
        return Err(FuncError::Generic("nindent wants a number".to_owned()));
    };
    let indent = " ".repeat(width.as_u64().unwrap_or_default() as usize);
    let lines = text(args, 1)?;
    let lines = lines.lines().map(|line| format!("\n{indent}{line}"));
    Ok(lines.collect::<String>().into())
}

fn text(args: &[Value], index: usize) -> Result<String, FuncError> {
    match args.get(index) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(FuncError::Generic(format!(
            "got {other:?}, expected a text"
        ))),
    }
}

fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(it) => Value::Bool(*it),
        serde_json::Value::Number(it) => Value::from(it.as_i64().unwrap_or_default()),
        serde_json::Value::String(it) => Value::String(it.clone()),
        serde_json::Value::Array(it) => Value::Array(it.iter().map(value).collect()),
        serde_json::Value::Object(it) => Value::Map(
            it.iter()
                .map(|(name, it)| (name.clone(), value(it)))
                .collect(),
        ),
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(it) => (*it).into(),
        Value::String(it) => it.as_str().into(),
        Value::Number(it) => it.as_i64().into(),
        Value::Array(it) => it.iter().map(json).collect(),
        Value::Object(it) | Value::Map(it) => it
            .iter()
            .map(|(name, it)| (name.clone(), json(it)))
            .collect(),
        Value::NoValue | Value::Nil | Value::Function(_) => serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use k8s_openapi::{
        api::{
            apps::v1::DaemonSet,
            core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
            rbac::v1::{ClusterRole, ClusterRoleBinding},
        },
        serde::{Serialize, de::DeserializeOwned},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::cmd;

    /// The documents of a text.
    fn documents(text: &str) -> Vec<Value> {
        serde_saphyr::from_multiple(text).expect(text)
    }

    /// By the types of the API, which drop what they do not know: nothing may be missing afterwards.
    fn conforms<T: DeserializeOwned + Serialize>(document: &Value) -> T {
        let typed: T = serde_json::from_value(document.clone()).expect("of its type");
        assert_eq!(&serde_json::to_value(&typed).expect("JSON"), document);
        typed
    }

    /// Renders, holds every document against its schema, and returns the pods' specification.
    fn pods(values: &Value) -> Value {
        let mut pods = Value::Null;
        for document in documents(&render(values).expect("rendered")) {
            match document["kind"].as_str().unwrap_or_default() {
                "ClusterRole" => drop(conforms::<ClusterRole>(&document)),
                "ClusterRoleBinding" => drop(conforms::<ClusterRoleBinding>(&document)),
                "ConfigMap" => drop(conforms::<ConfigMap>(&document)),
                "DaemonSet" => {
                    conforms::<DaemonSet>(&document);
                    pods = document["spec"]["template"]["spec"].clone();
                }
                "Service" => drop(conforms::<Service>(&document)),
                "ServiceAccount" => drop(conforms::<ServiceAccount>(&document)),
                other => panic!("an unexpected {other}"),
            }
        }
        pods
    }

    #[test]
    fn the_plain_manifests_are_the_charts() {
        let kept = fs::read_to_string(manifests()).expect("manifests");
        assert!(
            kept == plain().expect("rendered"),
            "run `cargo xtask chart`"
        );
        conforms::<Namespace>(&documents(&kept)[0]);
    }

    #[test]
    fn numbers_are_found_by_who_monitors() {
        let plain = render(&json!({})).expect("rendered");
        assert!(!plain.contains("metrics"), "{plain}");
        let values = json!({"metrics": {
            "enabled": true,
            "port": 9000,
            "serviceMonitor": {"enabled": true, "interval": "10s", "labels": {"release": "prometheus"}},
        }});
        let all = documents(&render(&values).expect("rendered"));
        let of = |kind: &str| {
            let found = all.iter().find(|it| it["kind"] == kind);
            found.unwrap_or_else(|| panic!("no {kind} in {all:?}"))
        };
        let (set, service, monitor) = (of("DaemonSet"), of("Service"), of("ServiceMonitor"));
        conforms::<DaemonSet>(set);
        let service_is = conforms::<Service>(service);
        let ports = service_is.spec.and_then(|it| it.ports).expect("ports");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            container["ports"][0]["name"],
            service["spec"]["ports"][0]["targetPort"]
        );
        assert_eq!(container["ports"][0]["containerPort"], ports[0].port);
        let told = container["env"].as_array().expect("a list").iter();
        let told: Vec<&Value> = told.filter(|it| it["name"] == "ENFORCER_METRICS").collect();
        assert_eq!(told[0]["value"], "0.0.0.0:9000");
        assert_eq!(monitor["spec"]["endpoints"][0]["port"], "metrics");
        assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
        for (selector, labels) in [
            (
                &service["spec"]["selector"],
                &set["spec"]["template"]["metadata"]["labels"],
            ),
            (
                &monitor["spec"]["selector"]["matchLabels"],
                &service["metadata"]["labels"],
            ),
        ] {
            let wanted = selector.as_object().expect("labels");
            assert!(!wanted.is_empty());
            for (name, value) in wanted {
                assert_eq!(&labels[name], value, "{name}");
            }
        }
    }

    #[test]
    fn what_the_values_say_is_rendered() {
        let pod = pods(&json!({}));
        let container = &pod["containers"][0];
        assert_eq!(
            container["image"],
            format!("localhost/enforcer:{}", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(container["args"], json!(["run"]));
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"],
            json!(["ALL"])
        );
        assert_eq!(container["securityContext"]["privileged"], Value::Null);

        let pod = pods(&json!({
            "config": {"governance": ["https://g:7443"], "requireBundle": true},
            "governanceSecret": "enforcer-governance",
            "bundle": "kind: Bundle\nmetadata: {}\n",
            "image": {"repository": "r/enforcer", "digest": "sha256:00", "tag": "", "pullPolicy": "Always"},
            "imagePullSecrets": [{"name": "pull"}],
            "nodeSelector": {"zone": "a"},
            "affinity": {"nodeAffinity": {}},
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
            "extraEnv": [{"name": "ENFORCER_LOG", "value": "debug"}],
        }));
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "r/enforcer@sha256:00");
        let names: Vec<&Value> = container["env"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| &it["name"])
            .collect();
        assert_eq!(
            names,
            [
                "ENFORCER_CONFIG",
                "ENFORCER_BUNDLE",
                "ENFORCER_NODE",
                "ENFORCER_EXEMPT_NAMESPACES",
                "ENFORCER_LOG"
            ]
        );
        assert_eq!(pod["imagePullSecrets"][0]["name"], "pull");

        let container = &pods(&json!({"uninstall": true}))["containers"][0];
        assert_eq!(container["args"], json!(["uninstall", "--stay"]));
        assert_eq!(container["readinessProbe"], Value::Null);
    }

    /// What the chart gives the daemon as its configuration is one.
    #[test]
    fn the_configuration_is_what_the_values_say() {
        let config = json!({"tier": "lsm", "labels": {"zone": "a"}});
        let all = documents(
            &render(&json!({"config": config, "bundle": "a: 1\nb:\n  c: 2\n"})).expect("rendered"),
        );
        let map = all
            .iter()
            .find(|it| it["kind"] == "ConfigMap")
            .expect("a ConfigMap");
        let read = |name: &str| -> Value {
            serde_saphyr::from_str(map["data"][name].as_str().expect(name)).expect(name)
        };
        assert_eq!(read("enforcer.yaml"), config);
        assert_eq!(read("bundle.yaml"), json!({"a": 1, "b": {"c": 2}}));
    }

    /// Only who is to ask kubelet may, and nothing but its list.
    #[test]
    fn kubelet_is_asked_where_the_values_say_so() {
        let without = render(&json!({})).expect("rendered");
        for word in ["ClusterRole", "serviceAccountToken", "ENFORCER_KUBELET"] {
            assert!(!without.contains(word), "{word} in {without}");
        }
        let values = json!({"kubelet": {"enabled": true, "ca": "-----BEGIN\nx\n"}});
        let pod = pods(&values);
        let all = documents(&render(&values).expect("rendered"));
        let of = |kind: &str| {
            let found = all.iter().find(|it| it["kind"] == kind);
            found.unwrap_or_else(|| panic!("no {kind} in {all:?}"))
        };
        let rules = json!([{"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}]);
        assert_eq!(of("ClusterRole")["rules"], rules);
        let bound = of("ClusterRoleBinding");
        assert_eq!(
            bound["roleRef"]["name"],
            of("ClusterRole")["metadata"]["name"]
        );
        assert_eq!(bound["subjects"][0]["name"], pod["serviceAccountName"]);
        assert_eq!(of("ConfigMap")["data"]["kubelet-ca.pem"], "-----BEGIN\nx\n");
        // The files that it is told of are among those that it has.
        let container = &pod["containers"][0];
        let list = |value: &Value| value.as_array().expect("a list").clone();
        let mounts = list(&container["volumeMounts"]);
        for name in ["ENFORCER_KUBELET_TOKEN", "ENFORCER_KUBELET_CA"] {
            let told = list(&container["env"])
                .into_iter()
                .find(|it| it["name"] == name);
            let told = told.unwrap_or_else(|| panic!("no {name}"));
            let (directory, file) = (told["value"].as_str())
                .and_then(|path| path.rsplit_once('/'))
                .expect("a path");
            let mount = mounts.iter().find(|it| it["mountPath"] == directory);
            let volume = &mount.expect("a mount")["name"];
            let volume = list(&pod["volumes"])
                .into_iter()
                .find(|it| it["name"] == *volume);
            assert!(volume.expect("a volume").to_string().contains(file));
        }
    }

    #[test]
    fn helm_renders_the_same() {
        if cmd::which("helm").is_none() {
            println!("skipped: there is no helm here");
            return;
        }
        let mut helm = Command::new("helm");
        helm.args(["template", RELEASE, "--namespace", RELEASE])
            .arg(chart());
        let sorted = |text: &str| {
            let mut all = documents(text);
            all.sort_by_key(|it| it["kind"].to_string());
            all
        };
        let rendered = cmd::capture(&mut helm).expect("rendered");
        assert_eq!(
            sorted(&rendered),
            sorted(&render(&json!({})).expect("rendered"))
        );
    }
}
