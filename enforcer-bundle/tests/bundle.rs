//! Bundles from text and from files: what is read, and every mistake that is found, word for word.

use std::fs;
use std::path::{Path, PathBuf};

use enforcer_bundle::{
    Action, Bundle, Defaults, Executable, Inbound, LoadError, MAX_BYTES, Match, Mistakes, Mode,
    OnExpiry, OnStale, PortRange, Protocols, Source, Target, Unclassified, Unit, User, load, parse,
};
use proptest::prelude::*;

const SAMPLE: &str = include_str!("bundles/good/sample.yaml");

fn bundles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles")
}

fn parse_text(name: &str, text: &str) -> Result<Bundle, Mistakes> {
    parse(&[(name.into(), text.to_owned())])
}

/// The mistakes in the text at `input` are those in the text at `expected`; `UPDATE_EXPECT=1` writes them there.
fn check(input: &Path, expected: &Path) {
    let text = fs::read_to_string(input).expect("the fixture can be read");
    let name = input.file_name().expect("a file").to_string_lossy();
    let mistakes = parse_text(&name, &text).expect_err(&name);
    let rendered = format!("{mistakes}\n");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(expected, rendered).expect("the expectation can be written");
        return;
    }
    let expected = fs::read_to_string(expected).expect("UPDATE_EXPECT=1 writes it");
    assert_eq!(rendered, expected, "{name}");
}

#[test]
fn malformed_bundles_are_refused_with_every_mistake() {
    let mut count = 0;
    for entry in fs::read_dir(bundles().join("bad")).expect("fixtures") {
        let input = entry.expect("fixture").path();
        if input
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            check(&input, &input.with_extension("expected"));
            count += 1;
        }
    }
    assert!(count >= 25, "only {count} fixtures");
}

#[test]
fn the_sample_is_read_as_it_is_meant() {
    let bundle = parse_text("sample.yaml", SAMPLE).expect("the sample is right");
    assert_eq!(bundle.metadata.issuer, "iga.example.com");
    assert_eq!(bundle.metadata.version, 42);
    assert_eq!(
        bundle.metadata.expires_at,
        "2026-11-29T00:00:00Z".parse().ok()
    );
    assert_eq!(
        bundle.defaults,
        Defaults {
            mode: Mode::Enforce,
            action: Action::Block,
            inbound: Inbound::Permit,
            on_expiry: OnExpiry::Deny,
            on_stale: OnStale::Keep,
            unclassified: Unclassified::Deny,
        }
    );
    let kubelet = Executable {
        path: "/usr/bin/kubelet".into(),
        sha256: None,
        fs_verity: None,
    };
    let unit = Some(Unit {
        name: "kubelet.service".to_owned(),
        user: None,
    });
    assert_eq!(
        bundle.trusted,
        [Match {
            executable: Some(kubelet),
            systemd_unit: unit,
            ..Match::default()
        }]
    );
    assert_eq!(
        bundle.baseline[0].ports,
        [PortRange {
            first: 53,
            last: 53
        }]
    );
    assert_eq!(
        bundle.baseline[0].protocols,
        Protocols::TCP.union(Protocols::UDP)
    );
}

#[test]
fn containers() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let text = format!(
        "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {{issuer: iga.example.com, version: 1}}
defaults: {{unclassified: monitor}}
workloads:
  - id: billing
    match:
      kubernetes: {{namespace: payments, serviceAccount: billing, podLabels: {{app: billing}}, container: app, image: \"registry.example.com/billing:1\", imageDigest: \"{digest}\", nodeLabels: {{zone: a}}}}
      interactive: false
  - {{id: all, match: {{kubernetes: {{namespace: payments}}}}}}
  - {{id: job, match: {{container: {{labels: {{com.example/job: nightly}}}}}}}}
"
    );
    let bundle = parse_text("containers.yaml", &text).expect("it is right");
    assert_eq!(bundle.defaults.unclassified, Unclassified::Monitor);
    let [billing, all, job] = bundle.workloads.as_slice() else {
        panic!("{:?}", bundle.workloads)
    };
    let kubernetes = billing.selectors.kubernetes.as_ref().expect("given");
    assert_eq!(kubernetes.service_account.as_deref(), Some("billing"));
    assert_eq!(kubernetes.pod_labels["app"], "billing");
    assert_eq!(kubernetes.container.as_deref(), Some("app"));
    assert_eq!(kubernetes.image_digest.as_ref(), Some(&digest));
    assert_eq!(kubernetes.node_labels["zone"], "a");
    assert_eq!(billing.selectors.interactive, Some(false));
    assert!(all.selectors.is_identity() && all.selectors.is_of_container());
    let container = job.selectors.container.as_ref().expect("given");
    assert_eq!(container.labels["com.example/job"], "nightly");
}

#[test]
fn credentials_and_workloads_of_the_sample() {
    let bundle = parse_text("sample.yaml", SAMPLE).expect("the sample is right");
    let [stripe, metadata, agent] = bundle.credentials.as_slice() else {
        panic!("{:?}", bundle.credentials)
    };
    assert!(stripe.exclusive && !metadata.exclusive);
    assert_eq!(
        stripe.sources[0],
        Source::File("/etc/payments/stripe.key".into())
    );
    assert_eq!(stripe.sources[2], Source::Directory("/run/stripe".into()));
    assert_eq!(
        metadata.sources[1],
        Source::Endpoint("[fd00:ec2::254]:80".parse().expect("address"))
    );
    assert_eq!(
        agent.sources,
        [
            Source::Socket("/run/agent/api.sock".into()),
            Source::AbstractSocket("agent/1".to_owned()),
            Source::Environment("AGENT_TOKEN".to_owned()),
        ]
    );
    let Source::Files(glob) = &stripe.sources[1] else {
        panic!("{:?}", stripe.sources)
    };
    let matcher = glob.compile_matcher();
    assert!(matcher.is_match("/srv/a/stripe-x1.key"));
    assert!(!matcher.is_match("/srv/a/b/stripe-x1.key"));

    assert_eq!(bundle.workloads[0].selectors.user, Some(User::Id(1000)));
    let restic = &bundle.workloads[1].selectors;
    assert_eq!(restic.user, Some(User::Name("backup".to_owned())));
    let digest = restic
        .executable
        .as_ref()
        .and_then(|executable| executable.sha256)
        .expect("digest");
    assert_eq!((digest[0], digest[31]), (0xe3, 0x55));
}

#[test]
fn sources_that_the_node_places() {
    let text = "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {issuer: test, version: 1}
credentials:
  - id: key
    sources:
      - catalogue: aws
      - systemdCredential: {unit: backup.service, name: key}
      - systemdCredential: {unit: getty@tty1.service}
      - kubernetesSecret: {namespace: payments, name: stripe.com}
      - kubernetesSecret: {namespace: payments, name: stripe, keys: [tls.key, ca]}
      - serviceAccountToken: {}
      - serviceAccountToken: {audience: vault}
";
    let bundle = parse_text("bundle.yaml", text).expect("right");
    let sources = bundle.credentials[0].sources.iter();
    let sources: Vec<String> = sources.map(ToString::to_string).collect();
    assert_eq!(
        sources,
        [
            "catalogue aws",
            "file /run/credentials/backup.service/key",
            "directory /run/credentials/getty@tty1.service",
            "kubernetesSecret payments/stripe.com",
            "kubernetesSecret payments/stripe ca, tls.key",
            "serviceAccountToken",
            "serviceAccountToken for vault",
        ]
    );
}

#[test]
fn entitlements_of_the_sample() {
    let bundle = parse_text("sample.yaml", SAMPLE).expect("the sample is right");
    let [full, nowhere, endpoint] = bundle.entitlements.as_slice() else {
        panic!("{:?}", bundle.entitlements)
    };
    let targets: Vec<_> = full
        .destinations
        .iter()
        .map(|destination| &destination.target)
        .collect();
    assert_eq!(
        targets,
        [
            &Target::Host("api.stripe.com".to_owned()),
            &Target::Cidr("10.20.0.0/16".parse().expect("network")),
            &Target::Cidr("192.0.2.1/32".parse().expect("network")),
        ]
    );
    assert_eq!(
        full.destinations[0].ports[1],
        PortRange {
            first: 8000,
            last: 8080
        }
    );
    assert_eq!(full.destinations[2].protocols, Protocols::ICMP);
    assert_eq!(
        (full.mode, full.action),
        (Some(Mode::Monitor), Some(Action::Kill))
    );
    assert_eq!(full.valid_until, "2027-01-31T23:00:00Z".parse().ok());
    let review = full
        .approval
        .as_ref()
        .and_then(|approval| approval.review_by);
    assert_eq!(review, "2027-01-15".parse().ok());
    assert!(nowhere.destinations.is_empty() && endpoint.destinations.is_empty());
}

#[test]
fn whom_the_entitlements_of_the_sample_serve() {
    let bundle = parse_text("sample.yaml", SAMPLE).expect("the sample is right");
    let served = bundle.entitlements.iter().map(|it| it.serves.as_deref());
    let [Some([some, all]), Some([]), None] = served.collect::<Vec<_>>()[..] else {
        panic!("{:?}", bundle.entitlements)
    };
    let ports: Vec<_> = some.ports.iter().map(|it| (it.first, it.last)).collect();
    assert_eq!(ports, [(8080, 8080), (9000, 9100)]);
    let from: Vec<_> = some.from.iter().map(ToString::to_string).collect();
    assert_eq!(from, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    assert!(all.ports.is_empty() && all.from.is_empty());
}

#[test]
fn json_is_read_too() {
    let bundle =
        parse_text("sample.json", include_str!("bundles/good/sample.json")).expect("right");
    assert_eq!(bundle.metadata.version, 7);
    assert_eq!(
        bundle.credentials[0].sources,
        [Source::File("/etc/key".into())]
    );
    assert_eq!(bundle.defaults, Defaults::default());
}

#[test]
fn the_digest_follows_the_text() {
    let first = parse_text("a.yaml", SAMPLE).expect("right");
    let renamed = parse_text("b.yaml", SAMPLE).expect("right");
    let commented = parse_text("a.yaml", &format!("{SAMPLE}# more\n")).expect("right");
    assert_eq!(first.digest.len(), 64);
    assert_eq!(first, renamed);
    assert_ne!(first.digest, commented.digest);
}

#[test]
fn a_directory_is_one_bundle() {
    let directory = tempfile::tempdir().expect("directory");
    let write =
        |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
    let (first, second) = SAMPLE.split_once("---\n").expect("two documents");
    write("20-rest.yml", second);
    write("10-head.yaml", first);
    write(".hidden.yaml", "not: [a bundle");
    write("README.md", "not a bundle either");
    fs::create_dir(directory.path().join("sub.yaml")).expect("directory");
    let bundle = load(directory.path()).expect("right");
    assert_eq!(
        bundle.entitlements,
        parse_text("one", SAMPLE).expect("right").entitlements
    );

    write(
        "30-more.yaml",
        "apiVersion: enforcer.dev/v1\nkind: Bundle\ncredentials: [{id: stripe-api-key}]\n",
    );
    let LoadError::Mistakes(Mistakes(mistakes)) = load(directory.path()).expect_err("wrong") else {
        panic!("it can be read")
    };
    let places: Vec<_> = mistakes
        .iter()
        .map(|mistake| (mistake.line, mistake.column, mistake.path.as_str()))
        .collect();
    assert_eq!(
        places,
        [(3, 15, "credentials[0]"), (3, 20, "credentials[0].id")]
    );
    assert!(
        mistakes[1].message.contains("10-head.yaml:10:9"),
        "{}",
        mistakes[1]
    );
    assert!(mistakes[1].file.ends_with("30-more.yaml"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    let missing = directory.path().join("bundle.yaml");
    let error = load(&missing).expect_err("missing");
    assert!(
        matches!(&error, LoadError::Io { path, .. } if *path == missing),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        format!("cannot read the bundle at {}", missing.display())
    );

    let error = load(directory.path()).expect_err("empty").to_string();
    assert!(error.contains("expected at least one file"), "{error}");
}

#[test]
fn bytes_that_are_no_text_have_a_place() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("bundle.yaml");
    fs::write(&file, b"kind: Bundle\nowner: \xc3\xbc\xff\n").expect("written");
    let LoadError::Mistakes(Mistakes(mistakes)) = load(&file).expect_err("wrong") else {
        panic!()
    };
    assert_eq!(mistakes.len(), 1);
    assert_eq!((mistakes[0].line, mistakes[0].column), (2, 9));
}

#[test]
fn a_huge_file_is_refused_unread() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("bundle.yaml");
    fs::File::create(&file)
        .and_then(|file| file.set_len(MAX_BYTES + 1))
        .expect("sparse file");
    let error = load(&file).expect_err("too large").to_string();
    assert!(error.contains("larger than 67108864 bytes"), "{error}");
}

#[test]
fn a_thousand_mistakes_are_enough() {
    let items = "x, ".repeat(5000);
    let text = format!("apiVersion: enforcer.dev/v1\nkind: Bundle\ncredentials: [{items}]\n");
    let Mistakes(mistakes) = parse_text("many.yaml", &text).expect_err("wrong");
    assert_eq!(mistakes.len(), 1001);
    assert_eq!(mistakes[1000].message, "4000 more mistakes are not shown");
}

#[test]
fn no_truncation_of_the_sample_panics() {
    for (end, _) in SAMPLE.char_indices() {
        let _ = parse_text("cut.yaml", &SAMPLE[..end]);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_text("any.yaml", &String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[-\\[\\]{}:,&*!|>'\"%@`#?~ \\n\\ta0é]{0,80}") {
        let _ = parse_text("any.yaml", &text);
    }

    /// A mutated sample is refused with mistakes inside the text, or it is still a bundle.
    #[test]
    fn no_mutation_of_the_sample_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, any::<char>()), 1..6),
    ) {
        let mut chars: Vec<char> = SAMPLE.chars().collect();
        for (place, kind, new) in edits {
            let index = place.index(chars.len());
            match kind {
                0 => chars[index] = new,
                1 => chars.insert(index, new),
                _ => drop(chars.remove(index)),
            }
        }
        let text: String = chars.into_iter().collect();
        if let Err(Mistakes(mistakes)) = parse_text("mutated.yaml", &text) {
            prop_assert!(!mistakes.is_empty());
            for mistake in mistakes {
                prop_assert!(mistake.line >= 1 && mistake.column >= 1, "{mistake}");
                prop_assert!(mistake.line <= text.lines().count() + 1, "{mistake}");
            }
        }
    }
}
