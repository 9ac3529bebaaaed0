//! Secrets that are no part of any image.

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::ffi::OsStringExt,
    sync::{Arc, PoisonError, RwLock},
};

use crac_core::{BoxError, CheckpointContext, Phase, Resource, ResourceOptions, RestoreContext, async_trait};
use crac_sys::secret::{SecretBytes, wipe};

use crate::{Registered, register};

/// A password, key or token that a checkpoint leaves out and a restored life gets anew.
///
/// The bytes are in memory that the native engine leaves out of images, so the process that is checkpointed keeps them whatever
/// becomes of the round. For an engine that saves all memory they are overwritten before the capture, and got anew after it.
///
/// Make it before what uses it: secrets come back in the phase [`Phase::Egress`], those registered first before others, so a pool
/// that is made later finds its password when it reconnects. Copies that the service makes are its own affair: see
/// [`Zeroising`](crate::alloc::Zeroising) for those it frees, and `crac inspect --find-secrets` for those it has forgotten.
pub struct Secret {
    shared: Arc<Shared>,
    _registered: Registered,
}

type Refill = dyn Fn(&RestoreContext) -> Result<Vec<u8>, BoxError> + Send + Sync;

struct Shared {
    bytes: RwLock<Bytes>,
    refill: Box<Refill>,
}

struct Bytes {
    secret: SecretBytes,
    wiped: bool,
}

impl Secret {
    /// Registers `initial` as a secret called `name`; the given copy is overwritten. `refill` gets it anew in a restored life, for
    /// example from a file or from the environment of the restore.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory that can be left out.
    pub fn new(
        name: &str,
        mut initial: Vec<u8>,
        refill: impl Fn(&RestoreContext) -> Result<Vec<u8>, BoxError> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let secret = SecretBytes::new(&initial);
        wipe(&mut initial);
        let bytes = RwLock::new(Bytes { secret: secret?, wiped: false });
        let shared = Arc::new(Shared { bytes, refill: Box::new(refill) });
        let registered = register(ResourceOptions::new(format!("secret {name}")).phase(Phase::Egress), Keeper(shared.clone()));
        Ok(Self { shared, _registered: registered })
    }

    /// Takes the variable `name` out of the environment of this process, overwriting it there, and gets it from the environment
    /// of the restore in a restored life. `None` if it is not set.
    ///
    /// That environment ([`RestoreContext::env`]) stays in ordinary memory as long as the life does: an image that is taken of a
    /// restored life holds it. Where that matters, let [`new`](Self::new) read a file.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// # Contract
    ///
    /// To be called before other threads may read the environment by way of C code (getenv(3), localtime(3), getaddrinfo(3)).
    pub fn from_env(name: &str) -> io::Result<Option<Self>> {
        let Some(value) = crac_sys::environment::take(name) else { return Ok(None) };
        let variable = name.to_owned();
        let refill = move |life: &RestoreContext| match life.var(&variable) {
            Some(value) => Ok(OsString::from(value).into_vec()),
            None => Err(format!("the environment of the restore has no variable {variable}").into()),
        };
        Self::new(name, value.into_vec(), refill).map(Some)
    }

    /// Calls `look` with the bytes. What it copies out of them is its own affair.
    pub fn expose<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        look(self.shared.bytes.read().unwrap_or_else(PoisonError::into_inner).secret.as_slice())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

struct Keeper(Arc<Shared>);

#[async_trait]
impl Resource for Keeper {
    async fn before_checkpoint(&self, context: &CheckpointContext) -> Result<(), BoxError> {
        if !context.leaves_out_undumpable() {
            let mut bytes = self.0.bytes.write().unwrap_or_else(PoisonError::into_inner);
            bytes.secret.wipe();
            bytes.wiped = true;
        }
        Ok(())
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        let mut bytes = self.0.bytes.write().unwrap_or_else(PoisonError::into_inner);
        if context.is_restored() || bytes.wiped {
            let mut value = (self.0.refill)(context)?;
            let secret = SecretBytes::new(&value);
            wipe(&mut value);
            *bytes = Bytes { secret: secret?, wiped: false };
        }
        Ok(())
    }
}
