//! What a scan finds, and what it never says.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use enforcer::credentials::{Found, Report, inspect, scan, scan_root, text};
use jiff::Timestamp;
use proptest::prelude::*;

/// A directory that is a root.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().expect("a directory"));
        root.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\npg:x:70:70::/var/lib/pg:/bin/sh\n");
        root.write("etc/group", "root:x:0:\nstaff:x:50:ada\n");
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        let parent = path.parent().expect("a parent");
        fs::create_dir_all(parent).expect("a directory");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    fn scan(&self, host: bool) -> Report {
        scan_root(self.0.path(), "host", host).expect("scanned")
    }
}

fn at<'a>(report: &'a Report, path: &str) -> Option<&'a Found> {
    let mut all = report.credentials.iter();
    all.find(|found| found.places[0].path == path)
}

/// What is known of the credential at a path: `WHAT ID` of each thing in it.
fn ids(report: &Report, path: &str) -> Vec<String> {
    let found = at(report, path).unwrap_or_else(|| panic!("{path} is not in {report:#?}"));
    let items = found.items.iter();
    items
        .map(|item| format!("{} {}", item.what, item.id.as_deref().unwrap_or("-")))
        .collect()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("text")
}

fn is_there(program: &str) -> bool {
    let there = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    });
    if !there {
        println!("skipped in part: there is no {program}");
    }
    there
}

/// A token as Kubernetes makes them.
fn token(subject: &str, signature: &[u8]) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = format!(
        "{{\"iss\":\"https://kubernetes.default.svc\",\"sub\":\"{subject}\",\"exp\":1800000000,\"aud\":[\"vault\"]}}"
    );
    let signature = URL_SAFE_NO_PAD.encode(signature);
    format!(
        "{}.{}.{signature}",
        encode("{\"alg\":\"RS256\"}"),
        encode(&claims)
    )
}

#[test]
fn ssh_keys_have_the_fingerprints_that_openssh_says() {
    if !is_there("ssh-keygen") {
        return;
    }
    let root = Root::new();
    fs::create_dir_all(root.path("home/ada/.ssh")).expect("a directory");
    for (name, kind, passphrase) in [
        ("id_ed25519", "ed25519", ""),
        ("id_rsa", "rsa", ""),
        ("id_ecdsa", "ecdsa", ""),
        // Its public half is in the clear.
        ("id_locked", "ed25519", "long enough"),
    ] {
        let path = root.path(&format!("home/ada/.ssh/{name}"));
        let path = path.to_str().expect("text");
        run(
            "ssh-keygen",
            &[
                "-q",
                "-t",
                kind,
                "-N",
                passphrase,
                "-C",
                "a comment",
                "-f",
                path,
            ],
        );
        let fingerprint = run("ssh-keygen", &["-l", "-f", path]);
        let fingerprint = fingerprint.split(' ').nth(1).expect("a fingerprint");
        let report = root.scan(true);
        let seen = format!("/home/ada/.ssh/{name}");
        assert_eq!(ids(&report, &seen), [format!("SSH key {fingerprint}")]);
        assert!(at(&report, &format!("{seen}.pub")).is_none());
    }
    // The same key elsewhere is seen to be the same.
    let key = fs::read(root.path("home/ada/.ssh/id_ed25519")).expect("a key");
    root.write("var/lib/pg/.ssh/id_copy", key);
    let report = root.scan(true);
    let shared = |path: &str| {
        let found = at(&report, path).expect("found");
        let others = found.shared_with.iter().map(ToString::to_string);
        others.collect::<Vec<_>>()
    };
    assert_eq!(
        shared("/home/ada/.ssh/id_ed25519"),
        ["/var/lib/pg/.ssh/id_copy"]
    );
    assert_eq!(
        shared("/var/lib/pg/.ssh/id_copy"),
        ["/home/ada/.ssh/id_ed25519"]
    );
    assert!(shared("/home/ada/.ssh/id_rsa").is_empty());
}

#[test]
fn certificates_and_keys_say_what_openssl_says() {
    if !is_there("openssl") {
        return;
    }
    let root = Root::new();
    fs::create_dir_all(root.path("etc/nginx")).expect("a directory");
    let (key, certificate) = (
        root.path("etc/nginx/site.key"),
        root.path("certificate.pem"),
    );
    let (key, certificate) = (
        key.to_str().expect("text"),
        certificate.to_str().expect("text"),
    );
    let request =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ada";
    let request: Vec<&str> = request.split(' ').collect();
    run(
        "openssl",
        &[&request[..], &["-keyout", key, "-out", certificate]].concat(),
    );
    let pem = fs::read_to_string(certificate).expect("a certificate");
    let client = STANDARD.encode(&pem);
    root.write(
        "etc/kubernetes/admin.conf",
        format!(
            "apiVersion: v1\nkind: Config\nusers:\n- name: ada\n  user:\n    client-certificate-data: {client}\n    client-key-data: c2VjcmV0\n"
        ),
    );
    let report = root.scan(true);

    let serial = run(
        "openssl",
        &["x509", "-in", certificate, "-noout", "-serial"],
    );
    let serial = serial.trim().trim_start_matches("serial=").to_lowercase();
    let found = ids(&report, "/etc/kubernetes/admin.conf");
    assert_eq!(found.len(), 1);
    let told = found[0]
        .trim_start_matches("certificate serial ")
        .replace(':', "");
    assert_eq!(told, serial);
    let expires = at(&report, "/etc/kubernetes/admin.conf").and_then(Found::expires);
    let span = Timestamp::now()
        .until(expires.expect("an end"))
        .expect("a span");
    let hours = span.total(jiff::Unit::Hour).expect("hours");
    assert!((719.0..=720.0).contains(&hours), "{hours}");

    let public = run("openssl", &["pkey", "-in", key, "-pubout"]);
    let lines = public.lines().filter(|line| !line.starts_with('-'));
    let der = STANDARD.decode(lines.collect::<String>()).expect("base64");
    let digest = <sha2::Sha256 as sha2::Digest>::digest(der);
    let expected = format!(
        "public key SHA256:{}",
        STANDARD.encode(digest).trim_end_matches('=')
    );
    assert_eq!(ids(&report, "/etc/nginx/site.key"), [expected]);
}

#[test]
fn every_kind_of_material_tells_its_id() {
    let root = Root::new();
    root.write(
        "root/.aws/credentials",
        "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMIK7MDENG\n[b]\naws_access_key_id=ASIAIOSFODNN7EXAMPL3\n",
    );
    root.write(
        "home/ada/.aws/sso/cache/0a.json",
        "{\"accessToken\": \"very secret\", \"expiresAt\": \"2026-12-01T00:00:00Z\"}",
    );
    let gcp = "0123456789abcdef0123456789abcdef01234567";
    root.write(
        "home/ada/.config/gcloud/application_default_credentials.json",
        format!("{{\"type\": \"service_account\", \"private_key_id\": \"{gcp}\"}}"),
    );
    root.write(
        "home/ada/.docker/config.json",
        "{\"auths\": {\"ghcr.io\": {\"auth\": \"YTpi\"}}}",
    );
    root.write(
        "home/ada/.gnupg/private-keys-v1.d/0123456789ABCDEF0123456789ABCDEF01234567.key",
        "(private-key)",
    );
    root.write(
        "home/ada/.codex/auth.json",
        format!(
            "{{\"tokens\": {{\"id_token\": \"{}\"}}}}",
            token("ada", b"signature")
        ),
    );
    let age = format!(
        "# public key: age1{}\nAGE-SECRET-KEY-1XYZ\n",
        "q".repeat(58)
    );
    root.write("home/ada/.config/sops/age/keys.txt", age);
    let report = root.scan(true);
    assert_eq!(
        ids(&report, "/root/.aws/credentials"),
        [
            "AWS access key AKIAIOSFODNN7EXAMPLE",
            "AWS access key ASIAIOSFODNN7EXAMPL3"
        ]
    );
    let sso = "/home/ada/.aws/sso/cache/0a.json";
    assert_eq!(ids(&report, sso), ["token -"]);
    let expires = at(&report, sso).and_then(Found::expires);
    assert_eq!(expires, "2026-12-01T00:00:00Z".parse().ok());
    assert_eq!(
        ids(
            &report,
            "/home/ada/.config/gcloud/application_default_credentials.json"
        ),
        [format!("GCP service account key {gcp}")]
    );
    assert!(ids(&report, "/home/ada/.docker/config.json").is_empty());
    assert_eq!(
        ids(
            &report,
            "/home/ada/.gnupg/private-keys-v1.d/0123456789ABCDEF0123456789ABCDEF01234567.key"
        ),
        ["GnuPG keygrip 0123456789ABCDEF0123456789ABCDEF01234567"]
    );
    assert_eq!(
        ids(&report, "/home/ada/.codex/auth.json"),
        ["JWT https://kubernetes.default.svc ada"]
    );
    assert_eq!(
        ids(&report, "/home/ada/.config/sops/age/keys.txt"),
        [format!("age recipient age1{}", "q".repeat(58))]
    );
    assert!(report.incomplete.is_empty(), "{:?}", report.incomplete);
}

#[test]
fn owners_modes_and_readers_are_told() {
    let root = Root::new();
    root.write("home/ada/.netrc", "machine x");
    let path = root.path("home/ada/.netrc");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
    let report = root.scan(true);
    let found = at(&report, "/home/ada/.netrc").expect("found");
    assert_eq!((found.catalogue, found.mode.as_str()), ("netrc", "0644"));
    assert_eq!(found.readers.last().map(String::as_str), Some("everybody"));
    assert!(!found.acl && found.unread.is_none());
    let shown = text(&report, Timestamp::now());
    assert!(
        shown.contains("/home/ada/.netrc\n    netrc (password), "),
        "{shown}"
    );
    assert!(shown.contains("0m old"), "{shown}");
}

#[test]
fn a_container_is_seen_as_it_sees_itself() {
    let root = Root::new();
    let volume = "run/secrets/kubernetes.io/serviceaccount";
    root.write(
        &format!("{volume}/..2026/token"),
        token("system:serviceaccount:a:b", b"x"),
    );
    symlink("..2026", root.path(&format!("{volume}/..data"))).expect("a link");
    symlink("..data/token", root.path(&format!("{volume}/token"))).expect("a link");
    fs::create_dir(root.path("var")).expect("a directory");
    symlink("/run", root.path("var/run")).expect("a link");
    root.write("etc/kubernetes/admin.conf", "apiVersion: v1\n");
    root.write(
        "home/ada/elsewhere",
        "[x]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n",
    );
    fs::create_dir_all(root.path("home/ada/.aws")).expect("a directory");
    // Absolute: from the container's root.
    symlink(
        "/home/ada/elsewhere",
        root.path("home/ada/.aws/credentials"),
    )
    .expect("a link");
    let report = root.scan(false);
    let token = "/run/secrets/kubernetes.io/serviceaccount/token";
    assert_eq!(
        ids(&report, token),
        ["JWT https://kubernetes.default.svc system:serviceaccount:a:b"]
    );
    assert_eq!(ids(&report, "/home/ada/.aws/credentials").len(), 1);
    // One file is told once, whatever leads to it, and what only hosts have is not looked for.
    assert_eq!(report.credentials.len(), 2, "{report:#?}");

    // Some have both directories.
    fs::remove_file(root.path("var/run")).expect("removed");
    fs::create_dir(root.path("var/run")).expect("a directory");
    let socket = root.path("var/run/docker.sock");
    let _listening = UnixListener::bind(&socket).expect("a socket");
    let report = root.scan(false);
    assert!(at(&report, "/var/run/docker.sock").is_some(), "{report:#?}");
}

#[test]
fn nothing_in_a_root_leads_out_of_it_or_holds_up() {
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("key"), "outside").expect("written");
    let root = Root::new();
    fs::create_dir_all(root.path("home/ada/.ssh")).expect("a directory");
    fs::create_dir_all(root.path("home/ada/.infisical/deep")).expect("a directory");
    let out = outside.path().join("key");
    symlink(&out, root.path("home/ada/.ssh/id_absolute")).expect("a link");
    let up = format!("{}{}", "../".repeat(30), out.display());
    symlink(up, root.path("home/ada/.ssh/id_relative")).expect("a link");
    symlink("/proc/self/environ", root.path("home/ada/.ssh/id_proc")).expect("a link");
    symlink("id_loop", root.path("home/ada/.ssh/id_loop")).expect("a link");
    symlink(outside.path(), root.path("home/eve")).expect("a link");
    // Directories that lead back.
    symlink("..", root.path("home/ada/.infisical/deep/again")).expect("a link");
    let mut deep = root.path("home/ada/.infisical");
    for _ in 0..60 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("directories");
    fs::write(deep.join("token"), "too deep").expect("written");
    // Opening these for reading waits for somebody to write, or does things.
    run(
        "mkfifo",
        &[root.path("home/ada/.netrc").to_str().expect("text")],
    );
    fs::create_dir(root.path("home/ada/.npmrc")).expect("a directory");
    // Names that terminals obey.
    root.write("home/ada/.ssh/id_\u{1b}[2J", "not a key");
    root.write("home/\u{1b}]0;x/.npmrc", "not a token");
    // A document that unfolds.
    let bomb = (1..30).fold("apiVersion: v1\na0: &a0 [x,x]\n".to_owned(), |text, n| {
        format!(
            "{text}a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 9].join(",")
        )
    });
    root.write("root/.kube/config", bomb);
    root.write("root/.codex/auth.json", "[".repeat(200_000));
    let report = root.scan(true);
    let paths: Vec<&str> = report
        .credentials
        .iter()
        .map(|it| it.places[0].path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "/root/.kube/config",
            "/home/\u{fffd}]0;x/.npmrc",
            "/home/ada/.ssh/id_\u{fffd}[2J",
            "/root/.codex/auth.json",
        ],
    );
    let shown = text(&report, Timestamp::now());
    assert!(
        !shown.contains('\u{1b}') && !shown.contains("outside"),
        "{shown}"
    );
}

#[test]
fn processes_with_another_root_are_looked_into() {
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if !is_root || !is_there("unshare") || !is_there("ldd") {
        println!("skipped: another root needs root, unshare and ldd");
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let script = "set -e
        mount -t tmpfs tmpfs \"$0\"
        mkdir -p \"$0/root/.aws\" \"$0/root/.ssh\"
        printf '[a]\\naws_access_key_id = AKIAIOSFODNN7CONTAIN\\naws_secret_access_key = hidden-in-container\\n' > \"$0/root/.aws/credentials\"
        ln -s /etc/shadow \"$0/root/.ssh/id_shadow\"
        cp --parents /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') \"$0\"
        echo ready
        exec chroot \"$0\" /bin/sleep 600";
    let mut child = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ])
        .arg(place.path())
        .env("ENFORCER_SCAN_TEST", "1")
        .env("HF_TOKEN", "hf_hidden-in-environment")
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    let mut ready = [0; 6];
    let mut stdout = child.stdout.take().expect("its output");
    std::io::Read::read_exact(&mut stdout, &mut ready).expect("it gets ready");
    // `chroot` has still to take effect.
    let mut report = Report::default();
    for _ in 0..50 {
        report = scan();
        if report.credentials.iter().any(in_container) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let _ = child.kill();
    let _ = child.wait();
    let found = report
        .credentials
        .iter()
        .find(|it| in_container(it))
        .expect("found");
    assert!(found.places[0].view.contains("(pid "), "{found:?}");
    let mut variables = report
        .credentials
        .iter()
        .filter(|it| it.catalogue == "huggingface");
    assert!(variables.any(|it| it.places[0].path == "environment variable HF_TOKEN"));
    let shadow = report.credentials.iter().flat_map(|it| &it.places);
    assert!(!shadow.into_iter().any(|it| it.path.contains("id_shadow")));
    for shown in renderings(&report) {
        assert!(!shown.contains("hidden-in"), "{shown}");
    }
}

fn in_container(found: &Found) -> bool {
    let mut items = found.items.iter();
    items.any(|item| item.id.as_deref() == Some("AKIAIOSFODNN7CONTAIN"))
}

/// Everything that a report can be shown as.
fn renderings(report: &Report) -> [String; 4] {
    [
        text(report, Timestamp::now()),
        serde_json::to_string(report).expect("JSON"),
        serde_saphyr::to_string(report).expect("YAML"),
        format!("{report:#?}"),
    ]
}

/// A piece of the secret by which it would be recognised in a text, plain or in one of many encodings.
fn traces(secret: &[u8]) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![hex.to_uppercase(), hex];
    let reversed: Vec<u8> = secret.iter().rev().copied().collect();
    for bytes in [secret, &reversed] {
        // From each of three places, since encoding is by threes.
        for start in 0..3 {
            let bytes = &bytes[start..];
            let whole = &bytes[..bytes.len() / 3 * 3];
            all.extend([STANDARD.encode(whole), URL_SAFE.encode(whole)]);
        }
        if let Ok(text) = std::str::from_utf8(bytes) {
            all.push(text.to_owned());
        }
    }
    all
}

/// Whether any part of it that is long enough to matter is in a text.
fn leaks(shown: &str, trace: &str) -> bool {
    const ENOUGH: usize = 10;
    let trace = trace.as_bytes();
    trace
        .windows(ENOUGH)
        .any(|part| std::str::from_utf8(part).is_ok_and(|part| shown.contains(part)))
}

/// A root with the secret in everything that is known to hold one.
fn planted(secret: &str) -> Root {
    let root = Root::new();
    let home = "home/ada";
    let jwt = token("ada", secret.as_bytes());
    let encoded = STANDARD.encode(secret);
    let quoted = serde_json::to_string(secret).expect("JSON");
    for (path, content) in [
        (
            ".aws/credentials",
            format!(
                "[a]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {secret}\naws_session_token={secret}\n"
            ),
        ),
        (
            ".aws/sso/cache/1.json",
            format!(
                "{{\"accessToken\": {quoted}, \"expiresAt\": {quoted}, \"AccessKeyId\": {quoted}}}"
            ),
        ),
        (
            ".aws/cli/cache/2.json",
            format!(
                "{{\"Credentials\": {{\"AccessKeyId\": \"ASIAIOSFODNN7EXAMPLE\", \"SecretAccessKey\": {quoted}, \"Expiration\": \"2026-12-01T00:00:00Z\"}}}}"
            ),
        ),
        (
            ".config/gcloud/application_default_credentials.json",
            format!(
                "{{\"private_key_id\": {quoted}, \"private_key\": {quoted}, \"refresh_token\": {quoted}}}"
            ),
        ),
        (
            ".azure/msal_token_cache.json",
            format!(
                "{{\"AccessToken\": {{\"k\": {{\"secret\": {quoted}, \"expires_on\": \"1800000000\"}}}}}}"
            ),
        ),
        (
            ".kube/config",
            format!(
                "apiVersion: v1\nusers:\n- name: a\n  user: {{token: {jwt}, client-key-data: {encoded}, client-certificate-data: {encoded}, password: {quoted}}}\n"
            ),
        ),
        (
            ".docker/config.json",
            format!("{{\"auths\": {{\"ghcr.io\": {{\"auth\": \"{encoded}\"}}}}}}"),
        ),
        (
            ".codex/auth.json",
            format!("{{\"OPENAI_API_KEY\": {quoted}, \"tokens\": {{\"id_token\": \"{jwt}\"}}}}"),
        ),
        (
            ".config/sops/age/keys.txt",
            format!("# public key: {secret}\n{secret}\n"),
        ),
        (
            ".ssh/id_rsa",
            format!("-----BEGIN RSA PRIVATE KEY-----\n{encoded}\n-----END RSA PRIVATE KEY-----\n"),
        ),
        (
            ".ssh/id_new",
            format!(
                "-----BEGIN OPENSSH PRIVATE KEY-----\n{encoded}\n-----END OPENSSH PRIVATE KEY-----\n"
            ),
        ),
        (
            ".ssh/tls.pem",
            format!(
                "-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n"
            ),
        ),
        (".netrc", format!("machine x login y password {secret}\n")),
        (
            ".npmrc",
            format!("//registry.npmjs.org/:_authToken={secret}\n"),
        ),
        (".pypirc", format!("[pypi]\npassword: {secret}\n")),
        (
            ".git-credentials",
            format!("https://ada:{secret}@github.com\n"),
        ),
        (".vault-token", secret.to_owned()),
        (".pgpass", format!("*:*:*:*:{secret}\n")),
        (
            ".config/gh/hosts.yml",
            format!("github.com:\n  oauth_token: {secret}\n"),
        ),
        (
            ".cargo/credentials.toml",
            format!("[registry]\ntoken = \"{secret}\"\n"),
        ),
        (
            ".terraform.d/credentials.tfrc.json",
            format!("{{\"credentials\": {{\"app.terraform.io\": {{\"token\": {quoted}}}}}}}"),
        ),
        (
            ".cache/huggingface/token",
            format!("{secret}.{secret}.{secret}"),
        ),
        (
            ".claude/.credentials.json",
            format!(
                "{{\"claudeAiOauth\": {{\"accessToken\": {quoted}, \"expiresAt\": 1800000000000}}}}"
            ),
        ),
        (".gnupg/private-keys-v1.d/a.key", secret.to_owned()),
        (
            ".s3cfg",
            format!("access_key = {secret}\nsecret_key = {secret}\n"),
        ),
    ] {
        root.write(&format!("{home}/{path}"), content);
    }
    root.write("etc/shadow", format!("root:{secret}:1::::::\n"));
    root
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_secret_is_ever_shown(secret in "[A-Za-z0-9+/_-]{32,64}") {
        let root = planted(&secret);
        let report = root.scan(true);
        // All of them were looked into.
        prop_assert_eq!(report.credentials.len(), 26);
        prop_assert!(report.credentials.iter().all(|it| it.unread.is_none()));
        prop_assert!(report.credentials.iter().filter(|it| !it.items.is_empty()).count() >= 6);
        for shown in renderings(&report) {
            for trace in traces(secret.as_bytes()) {
                prop_assert!(!leaks(&shown, &trace), "{} in {}", trace, shown);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = inspect(&bytes);
    }

    #[test]
    fn nothing_that_looks_like_material_panics(
        label in prop::sample::select(vec!["CERTIFICATE", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "X"]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        number in any::<i64>(),
    ) {
        let body = STANDARD.encode(&bytes);
        let _ = inspect(format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").as_bytes());
        let _ = inspect(format!("{{\"expiresAt\": {number}, \"x\": \"{body}.{body}.{body}\"}}").as_bytes());
        let _ = inspect(format!("apiVersion: v1\nclient-certificate-data: {body}\nexpiry: {number}\n").as_bytes());
    }
}

/// Real keys, cut and changed anywhere.
#[test]
fn damaged_keys_do_not_panic() {
    let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    for (end, _) in key.char_indices() {
        let _ = inspect(&key.as_bytes()[..end]);
        let mut changed = key.clone().into_bytes();
        changed[end] ^= 1;
        let _ = inspect(&changed);
    }
    assert_eq!(inspect(key.as_bytes()).len(), 1);
}
