//! When page data come into memory, as options of a verb.

/// At most one of them.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Fetch {
    /// Read all page data into memory and check them before the service runs, instead of mapping them: nothing has to be fetched
    /// later. Takes as much time and memory as there are data. `crac run` takes damaged data for a reason to start cold. CRIU always
    /// reads all, and has no checksums.
    #[arg(long)]
    pub(crate) eager: bool,

    /// Map page data as usual, but have all of them fetched before the service runs (MADV_POPULATE_READ): nobody waits for memory that
    /// is on the disk later. The first answer takes as long as reading the image, and memory that clones share; nothing is checked.
    #[arg(long, conflicts_with = "eager")]
    pub(crate) populate: bool,
}

impl Fetch {
    /// What is to be the value of [`EAGER`](crate::env::EAGER), if something was asked for.
    pub(crate) fn value(self) -> Option<&'static str> {
        if self.eager { Some("on") } else { self.populate.then_some("populate") }
    }
}
