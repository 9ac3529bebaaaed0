//! The control socket: checkpoints and questions from the `crac` command.
//!
//! ```text
//!  crac-control (thread)                    coordinator                              client
//!   poll: listener, stop, connections
//!   accept ─► who is it? same user or root
//!   a line ─► request ─────────────────────► round ─► Reply (reply.rs) ─ lines ─────► reads until the end of file
//!   prepare ─► the same, and ... ─────────► stands still, hears (asker.rs) ◄───────── captures, says how it ended
//!   status ─► answered at once, also while a round runs
//!                       suspend ◄─────────── just before the hold: thread joined, socket gone
//!                       resume ────────────► bound again, in a restored life under its own process id
//! ```
//!
//! The protocol is in [`crac_core::control`]. One plain thread serves it, because a runtime that is stuck is when people ask.

mod asker;
mod directory;
mod reply;
mod server;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crac_core::{Attachment, BoxError, Context, Trigger};

use self::server::Server;
use crate::lock;

/// Serves the control socket of `context` until the guard is dropped: `PID.sock` in `directory`, or in the directory that
/// the environment says ([`run_dir`](crac_core::control::run_dir)): in a restored life, the environment of the restore.
///
/// Only the same user and root are served, by the credentials that the kernel supplies (unix(7), `SO_PEERCRED`). Each
/// request is logged with its peer.
///
/// # Errors
///
/// If the directory cannot be made, belongs to somebody else or is open to others, or the socket cannot be bound.
pub fn serve(context: &Context, directory: Option<&Path>) -> io::Result<Control> {
    let trigger =
        Arc::new(Socket { context: context.clone(), directory: directory.map(Path::to_owned), server: Mutex::new(None) });
    trigger.bind()?;
    Ok(Control { attachment: Some(context.add_trigger(trigger.clone())), trigger })
}

/// Keeps the control socket served; dropping it ends that and removes the socket.
#[must_use = "dropping it ends the control socket"]
pub struct Control {
    trigger: Arc<Socket>,
    attachment: Option<Attachment>,
}

impl Control {
    /// Where the socket is, while it is served.
    pub fn path(&self) -> Option<PathBuf> {
        lock(&self.trigger.server).as_ref().map(|server| server.path().to_owned())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // First out of the context, or a round that begins now would bind the socket again at its end.
        drop(self.attachment.take());
        self.trigger.suspend();
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("path", &self.path()).finish()
    }
}

/// The socket as a trigger: gone while the process is saved.
struct Socket {
    context: Context,
    directory: Option<PathBuf>,
    server: Mutex<Option<Server>>,
}

impl Socket {
    /// Where the socket goes in this life.
    fn directory(&self) -> PathBuf {
        self.directory.clone().unwrap_or_else(|| directory::from_environment(&self.context.life()))
    }

    fn bind(&self) -> io::Result<()> {
        let server = Server::start(&self.context, &self.directory())?;
        *lock(&self.server) = Some(server);
        Ok(())
    }
}

impl Trigger for Socket {
    fn suspend(&self) {
        // Dropped outside the lock: that joins the thread.
        let server = lock(&self.server).take();
        drop(server);
    }

    fn resume(&self, _restored: bool) -> Result<(), BoxError> {
        self.bind().map_err(|error| format!("cannot serve the control socket in {}: {error}", self.directory().display()).into())
    }
}
