//! The floor of every start: a static program that binds, accepts, answers one request with 200, and does nothing else.
//!
//! `floor ADDR:PORT`. Built by `cargo xtask bench` with `-C target-feature=+crt-static`; answers until it is killed.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";

fn main() {
    let addr = std::env::args().nth(1).expect("usage: floor ADDR:PORT");
    let listener = TcpListener::bind(&addr).expect("the address is free");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 4096];
        let mut filled = 0;
        while !request[..filled].windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut request[filled..]) {
                Ok(read) if read > 0 => filled += read,
                _ => break,
            }
        }
        // A client that has gone does not want the answer.
        let _ = stream.write_all(ANSWER);
    }
}
