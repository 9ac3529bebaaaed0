//! A multi-threaded tokio runtime with a listener, timers, signals and blocking threads, captured without anybody's help.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use super::lives;

pub(crate) fn run() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ticks = Arc::new(AtomicU64::new(0));
    let open = Arc::new(AtomicU64::new(0));
    let caught = Arc::new(AtomicU64::new(0));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    {
        let (ticks, open, caught) = (ticks.clone(), open.clone(), caught.clone());
        runtime.spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(2));
            loop {
                interval.tick().await;
                ticks.fetch_add(1, Ordering::SeqCst);
            }
        });
        runtime.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                open.fetch_add(1, Ordering::SeqCst);
                let open = open.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..read]).await.unwrap();
                    }
                    drop(stream);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let mut signals = {
            let _inside = runtime.enter();
            signal(SignalKind::user_defined1()).unwrap()
        };
        runtime.spawn(async move {
            loop {
                signals.recv().await;
                caught.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    lives(|generation| {
        if generation == u64::MAX {
            return;
        }
        let before = ticks.load(Ordering::SeqCst);
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        drop(client);
        assert_eq!(
            runtime.block_on(async { tokio::task::spawn_blocking(move || generation * 2).await.unwrap() }),
            generation * 2
        );
        std::process::Command::new("kill").args(["-USR1", &std::process::id().to_string()]).status().unwrap();
        while caught.load(Ordering::SeqCst) <= generation
            || ticks.load(Ordering::SeqCst) < before + 3
            || open.load(Ordering::SeqCst) > 0
        {
            std::thread::yield_now();
        }
    });
}
