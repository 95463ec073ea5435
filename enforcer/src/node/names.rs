//! Host names of destinations, resolved and kept up to date by their time to live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;

use crate::bundle::{Bundle, Target};

/// A name is not looked up more often than this, whatever its time to live.
const SHORTEST: Duration = Duration::from_secs(5);
/// Nor less often, so that a moved service is found.
const LONGEST: Duration = Duration::from_secs(300);

/// The names of the bundle in force and what they resolve to.
#[derive(Default)]
pub struct Names {
    resolver: Option<TokioResolver>,
    known: BTreeMap<String, Known>,
}

struct Known {
    addresses: Vec<IpAddr>,
    due: Instant,
}

impl Names {
    /// Every host name that the bundle's destinations have.
    fn wanted(bundle: &Bundle) -> BTreeSet<String> {
        let entitled = bundle.entitlements.iter().flat_map(|it| &it.destinations);
        entitled
            .chain(&bundle.baseline)
            .filter_map(|destination| match &destination.target {
                Target::Host(name) => Some(name.clone()),
                Target::Cidr(_) => None,
            })
            .collect()
    }

    /// Resolves what the bundle names and is due. `true` if any address changed.
    pub async fn refresh(&mut self, bundle: &Bundle) -> bool {
        let wanted = Self::wanted(bundle);
        self.known.retain(|name, _| wanted.contains(name));
        let mut changed = false;
        for name in wanted {
            if self
                .known
                .get(&name)
                .is_some_and(|it| it.due > Instant::now())
            {
                continue;
            }
            let before = self.known.get(&name).map(|it| it.addresses.clone());
            let (addresses, lifetime) = match self.resolve(&name).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(
                        name,
                        error,
                        "a destination's name does not resolve; what it last resolved to stays"
                    );
                    (before.clone().unwrap_or_default(), SHORTEST)
                }
            };
            changed |= before.as_ref() != Some(&addresses);
            let due = Instant::now() + lifetime.clamp(SHORTEST, LONGEST);
            self.known.insert(name, Known { addresses, due });
        }
        changed
    }

    /// What is known now.
    pub fn hosts(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let pairs = self.known.iter();
        pairs
            .map(|(name, known)| (name.clone(), known.addresses.clone()))
            .collect()
    }

    /// The host name that an address was resolved from.
    pub fn host_of(&self, address: IpAddr) -> Option<String> {
        let mut known = self.known.iter();
        let (name, _) = known.find(|(_, known)| known.addresses.contains(&address))?;
        Some(name.clone())
    }

    async fn resolve(&mut self, name: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        let resolver = match &self.resolver {
            Some(resolver) => resolver,
            None => {
                let resolver = TokioResolver::builder_tokio()
                    .and_then(|builder| builder.build())
                    .map_err(|error| error.to_string())?;
                self.resolver.insert(resolver)
            }
        };
        let found = resolver
            .lookup_ip(name)
            .await
            .map_err(|error| error.to_string())?;
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let lifetime = found
            .valid_until()
            .saturating_duration_since(Instant::now());
        Ok((addresses, lifetime))
    }
}
