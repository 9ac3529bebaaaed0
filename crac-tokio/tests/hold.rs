//! Runtimes of every flavor come to a stop, are swept, and go on.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::ThreadId,
    time::{Duration, Instant},
};

use crac_core::{CheckpointError, CheckpointRequest, Completed, Context, Deadlines, Hold, Mode, ObstacleKind, SimEngine};
use crac_tokio::{Threads, TokioHold, TokioSpawner, attach_hold, attach_in};
use tokio::runtime::{Builder, Handle, LocalOptions, Runtime};

const LONG: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + LONG
}

fn context_on(handle: &Handle, deadlines: Deadlines) -> Context {
    let engine = Arc::new(SimEngine::new());
    let spawner = Arc::new(TokioSpawner::new(handle.clone()));
    Context::builder("test", engine).spawner(spawner).deadlines(deadlines).build().unwrap()
}

fn workers(count: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(count).enable_all().build().unwrap()
}

/// Two tasks that never let each other go idle; the counter counts their turns.
fn ping_pong(handle: &Handle) -> Arc<AtomicUsize> {
    let turns = Arc::new(AtomicUsize::new(0));
    let (ping, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let (pong, mut ponged) = tokio::sync::mpsc::unbounded_channel();
    let counter = turns.clone();
    handle.spawn(async move {
        while pong.send(()).is_ok() && pinged.recv().await.is_some() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    handle.spawn(async move { while ponged.recv().await.is_some() && ping.send(()).is_ok() {} });
    turns
}

/// Waits until the counter moves on from where it is.
fn wait_for_a_turn(turns: &AtomicUsize) {
    let (before, deadline) = (turns.load(Ordering::SeqCst), soon());
    while turns.load(Ordering::SeqCst) <= before {
        assert!(Instant::now() < deadline, "the tasks no longer run");
        std::thread::yield_now();
    }
}

/// Waits until the thread has gone to sleep: a blocking thread is not idle at the moment its task has ended.
fn wait_asleep(tid: i32) {
    let deadline = soon();
    let asleep = || std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap().contains(") S ");
    while !asleep() {
        assert!(Instant::now() < deadline, "thread {tid} does not go to sleep");
        std::thread::yield_now();
    }
}

/// The threads on which a sweep ran.
fn swept_threads(held: &dyn crac_core::Held) -> (HashSet<ThreadId>, Vec<String>) {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let list = seen.clone();
    let sweeping = held.sweep(Arc::new(move || _ = list.lock().unwrap().insert(std::thread::current().id())));
    let unswept = sweeping.unswept(soon());
    let seen = seen.lock().unwrap().clone();
    (seen, unswept)
}

#[test]
fn four_workers_that_are_never_idle_poll_nothing_while_held() {
    let runtime = workers(4);
    let turns = ping_pong(runtime.handle());
    let hold = TokioHold::new(runtime.handle().clone());
    for _ in 0..20 {
        wait_for_a_turn(&turns);
        let held = hold.hold(soon()).unwrap();
        assert!(held.threads() >= 4);
        let before = turns.load(Ordering::SeqCst);
        // Not a synchronisation: the longer it stands, the more a leak would show.
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(turns.load(Ordering::SeqCst), before, "a task was polled while all workers were held");
        held.release();
    }
    wait_for_a_turn(&turns);
}

#[test]
fn a_sweep_reaches_every_held_thread_once() {
    let runtime = workers(4);
    let hold = TokioHold::new(runtime.handle().clone());
    let held = hold.hold(soon()).unwrap();
    let (swept, _) = swept_threads(&*held);
    assert_eq!(swept.len(), held.threads());
    held.release();
}

#[test]
fn the_root_future_is_held_and_swept() {
    let runtime = workers(2);
    let hold = TokioHold::new(runtime.handle().clone());
    let (tell, told) = mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let polls = Arc::new(AtomicUsize::new(0));
    let (counter, root_hold) = (polls.clone(), hold.clone());
    let main = std::thread::spawn(move || {
        let not_send = std::rc::Rc::new(());
        let id = std::thread::current().id();
        runtime.block_on(root_hold.root(async move {
            let mut ended = ended;
            tell.send(id).unwrap();
            std::future::poll_fn(|cx| {
                counter.fetch_add(1, Ordering::SeqCst);
                std::pin::Pin::new(&mut ended).poll(cx)
            })
            .await
            .unwrap();
            drop(not_send);
        }));
    });
    let main_id = told.recv().unwrap();
    let held = hold.hold(soon()).unwrap();
    let (swept, _) = swept_threads(&*held);
    assert!(swept.contains(&main_id), "the block_on thread was not swept");
    let before = polls.load(Ordering::SeqCst);
    end.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(polls.load(Ordering::SeqCst), before, "the root was polled while held");
    held.release();
    main.join().unwrap();
}

#[test]
fn idle_blocking_threads_are_held_and_swept() {
    for watched in [false, true] {
        let mut builder = Builder::new_multi_thread();
        let threads = Threads::watch(&mut builder);
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        // All at the same time, so that there are as many threads.
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let ids: Vec<_> = (0..3)
            .map(|_| {
                let barrier = barrier.clone();
                runtime.spawn_blocking(move || {
                    barrier.wait();
                    (std::thread::current().id(), rustix::thread::gettid().as_raw_nonzero().get())
                })
            })
            .collect();
        let ids: Vec<(ThreadId, i32)> = ids.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
        ids.iter().for_each(|(_, tid)| wait_asleep(*tid));
        let hold = TokioHold::new(runtime.handle().clone());
        let hold = if watched { hold.with_threads(threads) } else { hold };
        let held = hold.hold(soon()).unwrap();
        let (swept, _) = swept_threads(&*held);
        for (id, _) in &ids {
            assert!(swept.contains(id), "an idle blocking thread was not swept (watched: {watched})");
        }
        if watched {
            assert_eq!(held.threads(), 4, "a thread was started although all of the runtime's were known to stand");
        }
        held.release();
    }
}

#[test]
fn a_running_blocking_task_is_left_alone_and_named_as_unswept() {
    let runtime = workers(1);
    let (let_go, stuck) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let task = runtime.spawn_blocking(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        stuck.recv().is_err()
    });
    let tid: i32 = told.recv().unwrap();
    let held = TokioHold::new(runtime.handle().clone()).hold(soon()).unwrap();
    let (_, unswept) = swept_threads(&*held);
    assert!(unswept.iter().any(|name| name.contains(&format!("(tid {tid})"))), "{unswept:?}");
    held.release();
    drop(let_go);
    assert!(runtime.block_on(task).unwrap());
}

#[test]
fn a_current_thread_runtime_is_held_by_its_block_on_thread() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    holds_one_thread(runtime.handle().clone(), move |hold, until| runtime.block_on(hold.root(until)));
}

#[test]
fn a_local_runtime_is_held_by_its_thread() {
    let (tell, told) = mpsc::channel();
    let (send_hold, hold) = mpsc::channel::<TokioHold>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let main = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        tell.send((runtime.handle().clone(), std::thread::current().id())).unwrap();
        let hold = hold.recv().unwrap();
        runtime.block_on(hold.root(async {
            let local = std::rc::Rc::new(7);
            assert_eq!(tokio::task::spawn_local(async move { *local }).await.unwrap(), 7);
            ended.await.unwrap();
        }));
    });
    let (handle, id) = told.recv().unwrap();
    let hold = TokioHold::new(handle);
    send_hold.send(hold.clone()).unwrap();
    let held = hold.hold(soon()).unwrap();
    let (swept, _) = swept_threads(&*held);
    assert!(swept.contains(&id));
    held.release();
    end.send(()).unwrap();
    main.join().unwrap();
}

#[test]
fn a_local_set_stands_with_its_root() {
    let runtime = workers(1);
    let hold = TokioHold::new(runtime.handle().clone());
    let turns = Arc::new(AtomicUsize::new(0));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let (counter, root_hold) = (turns.clone(), hold.clone());
    let main = std::thread::spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        });
        runtime.block_on(root_hold.root(local.run_until(async { ended.await.unwrap() })));
    });
    wait_for_a_turn(&turns);
    let held = hold.hold(soon()).unwrap();
    let before = turns.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(turns.load(Ordering::SeqCst), before, "a local task was polled while held");
    held.release();
    wait_for_a_turn(&turns);
    end.send(()).unwrap();
    main.join().unwrap();
}

fn holds_one_thread(
    handle: Handle,
    block_on: impl FnOnce(TokioHold, std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) + Send + 'static,
) {
    let hold = TokioHold::new(handle.clone());
    let turns = ping_pong(&handle);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let root_hold = hold.clone();
    let main = std::thread::spawn(move || block_on(root_hold, Box::pin(async { ended.await.unwrap() })));
    wait_for_a_turn(&turns);
    let held = hold.hold(soon()).unwrap();
    let before = turns.load(Ordering::SeqCst);
    let (swept, _) = swept_threads(&*held);
    assert!(swept.contains(&main.thread().id()));
    assert_eq!(turns.load(Ordering::SeqCst), before, "a task was polled while held");
    held.release();
    wait_for_a_turn(&turns);
    end.send(()).unwrap();
    main.join().unwrap();
}

#[test]
fn a_runtime_that_was_shut_down_is_no_obstacle() {
    let runtime = workers(2);
    let hold = TokioHold::new(runtime.handle().clone());
    drop(runtime);
    assert_eq!(hold.hold(soon()).unwrap().threads(), 0);
}

#[test]
fn a_runtime_attached_twice_is_held_once() {
    let runtime = workers(2);
    let context = context_on(runtime.handle(), Deadlines::default());
    let _first = attach_in(&context, runtime.handle());
    let _second = attach_in(&context, runtime.handle());
    let answer = runtime.block_on(context.checkpoint(CheckpointRequest::new(Mode::Continue)));
    assert!(matches!(answer, Ok(Completed::Continued(_))), "{answer:?}");
}

#[test]
fn a_second_runtime_is_held_too() {
    let (first, second) = (workers(2), workers(2));
    let turns = ping_pong(second.handle());
    let context = context_on(first.handle(), Deadlines::default());
    let _first = attach_in(&context, first.handle());
    let _second = attach_in(&context, second.handle());
    let moved = Arc::new(AtomicBool::new(false));
    let seen = moved.clone();
    context.on_sweep("look", move || {
        // The held threads go on as soon as each has swept; the coordinator lets them when it has swept itself.
        if std::thread::current().name() != Some("crac-coord") {
            return;
        }
        let before = turns.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
        seen.fetch_or(turns.load(Ordering::SeqCst) != before, Ordering::SeqCst);
    });
    let answer = first.block_on(context.checkpoint(CheckpointRequest::new(Mode::Exit)));
    let Ok(Completed::Restored(_, report)) = answer else { panic!("{answer:?}") };
    assert!(report.held_threads >= 4, "{report}");
    assert!(!moved.load(Ordering::SeqCst), "the second runtime ran while it was held");
}

#[test]
fn a_stuck_worker_is_named_and_the_service_goes_on() {
    let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("stuck-rt").enable_all().build().unwrap();
    let deadlines = {
        let mut deadlines = Deadlines::default();
        deadlines.hold = Duration::from_secs(1);
        deadlines
    };
    let context = context_on(runtime.handle(), deadlines);
    let _attached = attach_hold(&context, TokioHold::new(runtime.handle().clone()).named("orders"));
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let (tell, told) = mpsc::channel();
    runtime.spawn(async move {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        while !stopping.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    });
    let tid: i32 = told.recv().unwrap();
    let ticket = context.request(CheckpointRequest::new(Mode::Exit));
    let Ok(Err(CheckpointError::Aborted(report))) = ticket.wait(LONG) else { panic!("the hold must fail") };
    let obstacle = report.obstacles.iter().find(|obstacle| obstacle.kind == ObstacleKind::WorkerStuck).expect("a stuck worker");
    assert!(obstacle.subject.starts_with("orders: worker"), "{obstacle}");
    assert!(obstacle.subject.contains(&format!("stuck-rt (tid {tid}), running")), "{obstacle}");
    // The other worker still serves.
    let (tell, told) = mpsc::channel();
    runtime.spawn(async move { tell.send(()).unwrap() });
    told.recv_timeout(LONG).expect("the service goes on");
    stop.store(true, Ordering::SeqCst);
    let ticket = context.request(CheckpointRequest::new(Mode::Exit));
    assert!(matches!(ticket.wait(LONG), Ok(Ok(Completed::Restored(..)))), "once it yields, the checkpoint succeeds");
}

#[test]
fn a_root_that_blocks_is_named() {
    let runtime = workers(1);
    let hold = TokioHold::new(runtime.handle().clone());
    let (let_go, stuck) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let root_hold = hold.clone();
    let main = std::thread::Builder::new()
        .name("the-root".into())
        .spawn(move || {
            runtime.block_on(root_hold.root(async move {
                tell.send(()).unwrap();
                stuck.recv().unwrap_err();
            }));
        })
        .unwrap();
    told.recv().unwrap();
    let obstacles = hold.hold(Instant::now() + Duration::from_millis(100)).unwrap_err();
    assert!(obstacles.iter().any(|obstacle| obstacle.subject.contains("thread the-root")), "{obstacles:?}");
    drop(let_go);
    main.join().unwrap();
}
