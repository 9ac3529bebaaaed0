//! Checkpoint, exit and restore under HTTP load, again and again: nothing lost, nothing doubled, nothing broken off.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crac_testing::{
    http::{self, NoAnswer},
    lab::{Lab, Service},
    programs::program,
};

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    counted: AtomicU64,
    refused: AtomicU64,
    turned_away: AtomicU64,
    orders: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
}

/// Sends requests until told to stop; sends again what was surely not taken.
fn client(number: usize, addr: SocketAddr, stop: &AtomicBool, seen: &Seen) {
    let mut round = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let order = format!("order-{number}-{round}");
        let (method, path, body) =
            if round.is_multiple_of(4) { ("POST", "/orders", order.as_str()) } else { ("GET", "/counter", "") };
        match http::exchange(addr, method, path, body) {
            Ok(answer) if answer.status == 503 => {
                seen.turned_away.fetch_add(1, Ordering::SeqCst);
            }
            Ok(answer) if answer.status < 300 => {
                if method == "GET" {
                    seen.counted.fetch_add(1, Ordering::SeqCst);
                } else {
                    seen.orders.lock().unwrap().push(order);
                }
            }
            Err(NoAnswer::Refused(_)) => {
                seen.refused.fetch_add(1, Ordering::SeqCst);
            }
            other => seen.wrong.lock().unwrap().push(format!("{method} {path}: {other:?}")),
        }
    }
}

/// `CRAC_TEST_ROUNDS`, so that a soak runs the same test for longer.
fn rounds() -> u64 {
    std::env::var("CRAC_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(25)
}

fn again(lab: &Lab, image: &Path, addr: SocketAddr) -> Service {
    let mut command = lab.command(program("crac"));
    command.arg("restore").arg(image);
    Service::start(command, addr).answering()
}

#[test]
fn many_rounds_under_load_lose_double_and_break_nothing() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let addr = service.addr;
    let image = lab.file("web.crac");
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let (stop, seen) = (stop.clone(), seen.clone());
            std::thread::spawn(move || client(number, addr, &stop, &seen))
        })
        .collect();
    for round in 1..=rounds() {
        lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
        assert!(service.wait().success(), "round {round}:\n{}", service.output());
        service = again(&lab, &image, addr);
        let counted = seen.counted.load(Ordering::SeqCst);
        crac_testing::wait_until("requests succeed after the restore", || {
            (seen.counted.load(Ordering::SeqCst) > counted).then_some(())
        });
        let wrong = seen.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "round {round}: {wrong:?}");
    }
    stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());

    let counter: u64 = service.get("/counter").body.trim().parse().unwrap();
    assert_eq!(
        counter,
        seen.counted.load(Ordering::SeqCst) + 1,
        "every counted request was answered, and none was counted twice"
    );
    let stored = service.get("/orders").json();
    let stored: Vec<&str> = stored.as_array().unwrap().iter().map(|order| order["item"].as_str().unwrap()).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    stored.iter().for_each(|order| *times.entry(order).or_default() += 1);
    assert!(times.values().all(|times| *times == 1), "an order is doubled: {times:?}");
    for order in seen.orders.lock().unwrap().iter() {
        assert!(times.contains_key(order.as_str()), "{order} is lost");
    }
    eprintln!(
        "{} rounds: {} counted, {} orders, {} turned away, {} refused",
        rounds(),
        counter,
        seen.orders.lock().unwrap().len(),
        seen.turned_away.load(Ordering::SeqCst),
        seen.refused.load(Ordering::SeqCst)
    );
}

#[test]
fn requests_in_flight_complete_with_their_whole_body_and_later_ones_are_turned_away() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let addr = service.addr;
    let mut slow = http::Connection::open(addr).unwrap();
    let mut idle = http::Connection::open(addr).unwrap();
    assert_eq!(idle.exchange("GET", "/", "", "keep-alive").unwrap().status, 200);
    slow.send("GET", "/slow?ms=1500", "", "keep-alive").unwrap();
    // The request has been taken when another one that came later has been answered.
    service.get("/");
    let image = lab.file("web.crac");
    let mut checkpoint = lab.command(program("crac"));
    checkpoint.arg("checkpoint").arg(service.pid().to_string()).arg("--image").arg(&image);
    let mut checkpoint = checkpoint.spawn().unwrap();
    assert!(idle.is_closed().unwrap(), "an idle connection ends cleanly");
    match http::exchange(addr, "GET", "/", "") {
        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
        Err(NoAnswer::Refused(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
    let answer = slow.receive().expect("the request in flight completes");
    assert_eq!(answer.status, 200);
    assert!(!answer.body.is_empty());
    assert!(checkpoint.wait().unwrap().success());
    assert!(service.wait().success());
    assert_eq!(again(&lab, &image, addr).get("/").status, 200);
}
