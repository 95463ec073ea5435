//! The proof that the gates hold, and what follows where one does not.

use enforcer_common::tables;
use serde_json::json;

use super::Engine;
use super::status::state;
use crate::canary::Error;
use crate::kernel::maps::{self, Maps};

impl Engine {
    /// Tries the gates, and tells when what that proves has changed. While something gets through, the gates that
    /// still hold let no holder reach anything.
    pub async fn prove(&mut self) {
        if !self.has_bundle() {
            return;
        }
        let result = self.tried().await;
        if let Err(error) = self.degrade(matches!(
            result,
            Err(Error::Through(_) | Error::Detached(_))
        )) {
            tracing::error!(
                "holders cannot be kept from everything: {}",
                crate::chain(&error)
            );
        }
        let result = result.map_err(|error| crate::chain(&error));
        if result != self.proven {
            self.log.write(
                "state",
                json!({"state": state(&result, self.has_issued(), false, self.loaded.tier), "reason": result.as_ref().err()}),
            );
        }
        self.proven = result;
    }

    async fn tried(&mut self) -> Result<(), Error> {
        if let Some(program) = self
            .own
            .detached()
            .map_err(|error| Error::Links(Box::new(error)))?
        {
            return Err(Error::Detached(program.to_owned()));
        }
        self.canaries.fly().await
    }

    fn degrade(&mut self, degraded: bool) -> Result<(), maps::Error> {
        if degraded != self.degraded {
            let index = self.generation.0 & 1;
            let mut tables = Maps(&mut self.loaded.ebpf);
            let mut bundle: tables::Bundle = tables.at("BUNDLES", index)?;
            bundle.degraded = u8::from(degraded);
            tables.set("BUNDLES", index, bundle)?;
            self.degraded = degraded;
        }
        Ok(())
    }
}
