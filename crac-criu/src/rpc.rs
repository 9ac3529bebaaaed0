//! The part of CRIU's protocol that is spoken here: `images/rpc.proto` of CRIU 4.2, as structs.
//!
//! Field numbers are the protocol's. Fields that are not listed are skipped when they are read.

/// `criu_req`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) options: Option<Options>,
    /// Another request follows on this connection.
    #[prost(bool, optional, tag = "4")]
    pub(crate) keep_open: Option<bool>,
}

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Version = 10,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Options {
    /// -1: the next one counts.
    #[prost(int32, required, tag = "1")]
    pub(crate) images_dir_fd: i32,
    /// Absolute.
    #[prost(string, optional, tag = "68")]
    pub(crate) images_dir: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    /// Datagram sockets connected to others, such as the system log's.
    #[prost(bool, optional, tag = "4")]
    pub(crate) ext_unix_sk: Option<bool>,
    /// The session and process group may belong to a process outside.
    #[prost(bool, optional, tag = "7")]
    pub(crate) shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(crate) file_locks: Option<bool>,
    /// 1 errors, 2 warnings, 3 information, 4 everything.
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    /// Of the process at the other end of the connection; where the log goes, else to the images.
    #[prost(int32, optional, tag = "17")]
    pub(crate) work_dir_fd: Option<i32>,
    /// Bits: 1 floating point, 2 the same processor, 4 instructions.
    #[prost(uint32, optional, tag = "20")]
    pub(crate) cpu_cap: Option<u32>,
    /// The restored process is a child of whoever asks, not of CRIU.
    #[prost(bool, optional, tag = "26")]
    pub(crate) rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub(crate) inherit_fd: Vec<InheritFd>,
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub(crate) external: Vec<String>,
    /// Seconds that stopping the process may take.
    #[prost(uint32, optional, tag = "45")]
    pub(crate) timeout: Option<u32>,
    /// Connections that nobody has accepted yet are reset.
    #[prost(bool, optional, tag = "46")]
    pub(crate) tcp_skip_in_flight: Option<bool>,
    /// Established connections come back closed.
    #[prost(bool, optional, tag = "52")]
    pub(crate) tcp_close: Option<bool>,
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub(crate) network_lock: Option<i32>,
    #[prost(bool, optional, tag = "67")]
    pub(crate) unprivileged: Option<bool>,
    #[prost(bool, optional, tag = "69")]
    pub(crate) leave_stopped: Option<bool>,
}

/// `inherit_fd`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InheritFd {
    /// What it takes the place of: `pipe:[INODE]`, `socket:[INODE]`, `tty[DEVICE:DEVICE]`, or a path without its first slash.
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    /// A descriptor that CRIU has inherited.
    #[prost(int32, required, tag = "2")]
    pub(crate) fd: i32,
}

/// `criu_cg_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CgroupMode {
    Ignore = 0,
}

/// `criu_network_lock_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum NetworkLock {
    Iptables = 1,
    Skip = 3,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "4")]
    pub(crate) restore: Option<Restored>,
    #[prost(int32, optional, tag = "7")]
    pub(crate) errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub(crate) message: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub(crate) version: Option<Version>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Restored {
    #[prost(int32, required, tag = "1")]
    pub(crate) pid: i32,
}

/// `criu_version`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Version {
    #[prost(int32, required, tag = "1")]
    pub(crate) major: i32,
    #[prost(int32, required, tag = "2")]
    pub(crate) minor: i32,
    #[prost(int32, optional, tag = "4")]
    pub(crate) sublevel: Option<i32>,
}

impl Request {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind: kind as i32, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let mut request = Request::new(Kind::Version);
        request.keep_open = Some(true);
        assert_eq!(request.encode_to_vec(), [0x08, 10, 0x20, 1]);
        let options = Options { images_dir_fd: 3, pid: Some(300), external: vec!["x".into()], ..Options::default() };
        let mut request = Request::new(Kind::Dump);
        request.options = Some(options);
        // Field 37 of type 2 is 0xaa 0x02.
        assert_eq!(request.encode_to_vec(), [0x08, 1, 0x12, 9, 0x08, 3, 0x10, 0xac, 0x02, 0xaa, 0x02, 1, b'x']);
    }

    #[test]
    fn answers_are_read_and_what_is_not_known_is_skipped() {
        // A dump response, which is not listed, and the version.
        let bytes = [0x08, 10, 0x10, 1, 0x1a, 2, 0x08, 1, 0x52, 6, 0x08, 4, 0x10, 2, 0x20, 1];
        let response = Response::decode(&bytes[..]).unwrap();
        assert!(response.success);
        assert_eq!(response.version, Some(Version { major: 4, minor: 2, sublevel: Some(1) }));
        assert!(Response::decode(&[0x12, 200][..]).is_err(), "rubbish is no answer");
    }
}
