//! What connecting to PostgreSQL takes by itself: the first time in a new process, and once more.
//!
//! `connect URL` prints both in microseconds; each is one connection with TLS, authentication and one query over it.

use std::{process::ExitCode, time::Instant};

use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: connect URL");
        return ExitCode::FAILURE;
    };
    let mut took = Vec::new();
    for _ in 0..2 {
        let begun = Instant::now();
        match connect(&url).await {
            Ok(()) => took.push(begun.elapsed().as_micros()),
            Err(error) => {
                eprintln!("cannot connect: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{took:?}");
    ExitCode::SUCCESS
}

/// As a pool does that makes one connection: it is not closed politely within the time.
async fn connect(url: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.ping().await?;
    drop(connection);
    Ok(())
}
