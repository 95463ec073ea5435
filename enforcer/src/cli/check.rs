//! What is checked without a daemon: a bundle, and the kernel.

use std::path::Path;
use std::process::ExitCode;

use enforcer::bundle::LoadError;
use enforcer::kernel::probe;

use super::{Output, WANTING, failed};

pub fn bundle(path: &Path) -> ExitCode {
    match enforcer::bundle::load(path) {
        Ok(bundle) => {
            println!(
                "{}: version {}, {} credentials, {} workloads, {} entitlements: good",
                path.display(),
                bundle.metadata.version,
                bundle.credentials.len(),
                bundle.workloads.len(),
                bundle.entitlements.len()
            );
            for credential in &bundle.credentials {
                for source in credential.sources.iter().filter(|it| it.is_of_pods()) {
                    println!(
                        "{}: credential {}: {source} is protected only where kubelet lists its pods (setting `kubelet`); \
                         `enforcer status` says where it is not",
                        path.display(),
                        credential.id
                    );
                }
            }
            ExitCode::SUCCESS
        }
        Err(LoadError::Mistakes(mistakes)) => {
            println!("{mistakes}");
            ExitCode::from(WANTING)
        }
        Err(error) => failed(&enforcer::chain(&error)),
    }
}

pub fn kernel(output: Output) -> ExitCode {
    let found = probe::probe();
    match output {
        Output::Json => match serde_json::to_string_pretty(&found) {
            Ok(text) => println!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Yaml => match serde_saphyr::to_string(&found) {
            Ok(text) => print!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Text => {
            for it in &found {
                let word = if it.available { "yes" } else { "no" };
                println!("{:<16} {word:<4} {}", it.name, it.detail);
                if let Some(remedy) = it.remedy {
                    println!("{:<21} to have it: {remedy}", "");
                }
            }
        }
    }
    if probe::enforceable(&found) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WANTING)
    }
}
