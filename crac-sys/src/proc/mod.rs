//! Parsers for the text of `/proc` (proc(5)).
//!
//! Every parser takes bytes and borrows from them. None allocates, none panics on any input, each looks at a byte a bounded
//! number of times: the native engine runs them while every other thread is stopped, perhaps inside the allocator. What a
//! parser does not know (a later kernel's line) is passed over or handed out as it is; what it knows but cannot read is
//! [`Malformed`].
//!
//! Reading the files is the caller's part. A file of `/proc` that did not fit into the buffer must not be parsed: half a line
//! may look like a whole one.

mod fd_link;
mod fdinfo;
mod maps;
mod net;
mod process;
mod text;

pub use fd_link::{AnonInode, FdLink};
pub use fdinfo::{EpollTarget, FdInfo, FileLock, LockKind, Timerfd};
pub use maps::{Mapping, MappingName, SmapsEntries, SmapsEntry, VmFlags};
pub use net::{InetSocket, TcpState, UnixSocket};
pub use process::{ProcessStat, ProcessStatus, SignalSet};
pub use text::{Malformed, decimal_name, lines};
