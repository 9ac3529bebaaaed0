//! What privileges allow, as both programs see it.

use super::PrivilegeRecord;

impl PrivilegeRecord {
    /// Whether so many threads cannot be started under a limit of processes (`RLIMIT_NPROC`, setrlimit(2)). What others of this
    /// user take up is not looked at.
    pub const fn is_too_little(&self, limit: u64, threads: u64) -> bool {
        const CAP_SYS_ADMIN: u64 = 21;
        const CAP_SYS_RESOURCE: u64 = 24;
        let [user, ..] = self.uid;
        let counts = user != 0 && self.effective & (1 << CAP_SYS_ADMIN | 1 << CAP_SYS_RESOURCE) == 0;
        counts && threads > 1 && limit < threads
    }
}
