//! The pool against SQLite, in files.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc, time::Duration};

use crac_core::{
    BoxError, CheckpointContext, CheckpointError, CheckpointRequest, Completed, Context, Deadlines, Mode, Phase, Resource,
    ResourceOptions, SimEngine, async_trait,
};
use crac_sqlx::{ManageError, SqlitePool, Target, manage_in};
use sqlx::{Acquire, Sqlite, sqlite::SqlitePoolOptions};
use tokio::sync::{mpsc, oneshot};

fn context() -> Context {
    context_with(Deadlines::default())
}

fn context_with(deadlines: Deadlines) -> Context {
    Context::builder("sqlite", Arc::new(SimEngine::new())).deadlines(deadlines).build().unwrap()
}

/// Rounds give up soon.
fn impatient() -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.hook = Duration::from_secs(1);
    deadlines
}

fn url(directory: &tempfile::TempDir, name: &str) -> String {
    format!("sqlite://{}?mode=rwc", directory.path().join(name).display())
}

async fn with_orders(context: &Context, url: &str) -> SqlitePool {
    let pool = SqlitePool::connect_in(context, url).await.unwrap();
    sqlx::query("CREATE TABLE orders (text TEXT)").execute(&pool).await.unwrap();
    pool
}

async fn order(pool: &SqlitePool, text: &str) {
    sqlx::query("INSERT INTO orders VALUES (?)").bind(text).execute(pool).await.unwrap();
}

async fn orders(pool: &SqlitePool) -> Vec<String> {
    sqlx::query_scalar("SELECT text FROM orders ORDER BY rowid").fetch_all(pool).await.unwrap()
}

/// Registered before the pool, so that it is told to let go after it: runs `look` when the pool has let go.
struct AfterPool<F>(F);

#[async_trait]
impl<F: Fn() -> Result<(), BoxError> + Send + Sync + 'static> Resource for AfterPool<F> {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        (self.0)()
    }
}

/// Stops a round just before the pools are told to let go (or after, if registered earlier and in their phase).
struct Pause {
    reached: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[async_trait]
impl Resource for Pause {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        let (go_on, gone_on) = oneshot::channel();
        self.reached.send(go_on)?;
        Ok(gone_on.await?)
    }
}

fn pause(context: &Context, phase: Phase) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
    let (reached, pauses) = mpsc::unbounded_channel();
    context.register(ResourceOptions::new("pause").phase(phase), Pause { reached }).forever();
    pauses
}

/// What this process has open below `directory`.
fn open_files(directory: &Path) -> Vec<String> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target.starts_with(directory))
        .map(|target| target.display().to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_survive_and_nothing_is_open_while_the_process_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let watched = directory.path().to_owned();
    let look = move || match open_files(&watched) {
        files if files.is_empty() => Ok(()),
        files => Err(format!("still open: {files:?}").into()),
    };
    context.register(ResourceOptions::new("look").phase(Phase::Egress), AfterPool(look)).forever();
    let pool = with_orders(&context, &url(&directory, "orders.db")).await;
    let clone = pool.clone();
    order(&pool, "before").await;
    assert!(!open_files(directory.path()).is_empty(), "the test would not see an open database");
    for (mode, text) in [(Mode::Exit, "restored"), (Mode::Continue, "continued"), (Mode::Rehearse, "rehearsed")] {
        let completed = context.checkpoint(CheckpointRequest::new(mode)).await.unwrap();
        assert_eq!(matches!(completed, Completed::Restored(..)), mode == Mode::Exit);
        assert_eq!((clone.size(), clone.num_idle()), (1, 1), "one connection is made before the door opens");
        order(&clone, text).await;
    }
    assert_eq!(orders(&pool).await, ["before", "restored", "continued", "rehearsed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_in_flight_finishes_and_calls_meanwhile_wait() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let pool = with_orders(&context, &url(&directory, "orders.db")).await;
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('first')").execute(&mut *transaction).await.unwrap();

    let round = tokio::spawn({
        let context = context.clone();
        async move { context.checkpoint(CheckpointRequest::new(Mode::Exit)).await }
    });
    while !format!("{pool:?}").contains("shut: true") {
        tokio::task::yield_now().await;
    }
    let late = tokio::spawn({
        let pool = pool.clone();
        async move { order(&pool, "late").await }
    });
    sqlx::query("INSERT INTO orders VALUES ('second')").execute(&mut *transaction).await.unwrap();
    assert!(!round.is_finished());
    transaction.commit().await.unwrap();
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));
    late.await.unwrap();
    assert_eq!(orders(&pool).await, ["first", "second", "late"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_use_the_pool_until_its_own_turn() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let pool = with_orders(&context, &url(&directory, "orders.db")).await;
    let mut pauses = pause(&context, Phase::Work);
    let round = context.request(CheckpointRequest::new(Mode::Continue));
    let go_on = pauses.recv().await.unwrap();
    order(&pool, "in flight").await;
    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Continued(_))));
    assert_eq!(orders(&pool).await, ["in flight"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_never_ends_aborts_the_round_by_name_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let context = context_with(impatient());
    let pool = with_orders(&context, &url(&directory, "orders.db")).await;
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('mine')").execute(&mut *transaction).await.unwrap();
    let error = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await.unwrap_err();
    assert!(matches!(error, CheckpointError::Aborted(_)));
    let error = error.to_string();
    assert!(error.contains("sqlx pool sqlite://") && error.contains("orders.db"), "{error}");
    assert!(error.contains("1 connections or transactions are still checked out"), "{error}");
    // Others are served, and the one that was late is not disturbed.
    assert_eq!(orders(&pool).await, Vec::<String>::new());
    transaction.commit().await.unwrap();
    order(&pool, "another's").await;
    assert_eq!(orders(&pool).await, ["mine", "another's"]);
    // And the next round succeeds.
    assert!(matches!(context.checkpoint(CheckpointRequest::new(Mode::Exit)).await, Ok(Completed::Restored(..))));
    assert_eq!(orders(&pool).await, ["mine", "another's"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_at_most_the_acquire_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let mut pauses = pause(&context, Phase::Egress);
    let options = SqlitePoolOptions::new().acquire_timeout(Duration::from_secs(1));
    let pool = SqlitePool::connect_with_in(&context, options, url(&directory, "orders.db").parse().unwrap()).await.unwrap();
    let round = context.request(CheckpointRequest::new(Mode::Continue));
    // The pause was registered before the pool, so the pool has let go by now.
    let go_on = pauses.recv().await.unwrap();
    assert!(matches!(pool.acquire().await, Err(sqlx::Error::PoolTimedOut)));
    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Continued(_))));
    pool.acquire().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_life_may_have_another_database() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let other = url(&directory, "other.db");
    let pool = SqlitePool::builder()
        .context(&context)
        .name("orders")
        .on_restore(move |life| {
            let target = if life.is_restored() { Target::Url(other.clone()) } else { Target::Same };
            async move { Ok(target) }
        })
        .connect(&url(&directory, "orders.db"))
        .await
        .unwrap();
    assert!(context.resources().iter().any(|resource| resource.name == "orders"));
    sqlx::query("CREATE TABLE orders (text TEXT)").execute(&pool).await.unwrap();
    context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.unwrap();
    order(&pool, "still the first database").await;
    context.checkpoint(CheckpointRequest::new(Mode::Exit)).await.unwrap();
    assert!(pool.connect_options().get_filename().ends_with("other.db"));
    assert!(sqlx::query("SELECT * FROM orders").fetch_optional(&pool).await.is_err(), "the other database has no orders");
    context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.unwrap();
    assert!(pool.connect_options().get_filename().ends_with("other.db"), "it stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_reported_and_the_same_process_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let pool = with_orders(&context, &url(&directory, "orders.db")).await;
    // Opens only what is there.
    let strict = url(&directory, "orders.db").replace("rwc", "rw");
    let strict = SqlitePool::connect_in(&context, &strict).await.unwrap();
    let (from, to) = (directory.path().join("orders.db"), directory.path().join("moved.db"));
    let moving = (from.clone(), to.clone());
    let moved = move || Ok(std::fs::rename(&moving.0, &moving.1)?);
    drop(pool);
    context.register(ResourceOptions::new("mover").phase(Phase::Ingress), AfterPool(moved)).forever();
    let completed = context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.unwrap();
    let report = completed.report().to_string();
    assert!(report.contains("cannot connect to sqlite://") && report.contains("orders.db again"), "{report}");
    std::fs::rename(to, from).unwrap();
    assert_eq!(orders(&strict).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_pool_connects_when_it_is_used_and_not_at_the_end_of_a_round() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let url = url(&directory, "orders.db").replace("rwc", "rw");
    let pool = SqlitePool::builder().context(&context).connect_lazy(&url).unwrap();
    assert!(matches!(context.checkpoint(CheckpointRequest::new(Mode::Exit)).await, Ok(Completed::Restored(..))));
    assert_eq!(pool.size(), 0);
    std::fs::write(directory.path().join("orders.db"), "").unwrap();
    sqlx::query("CREATE TABLE orders (text TEXT)").execute(&pool).await.unwrap();
    assert!(matches!(context.checkpoint(CheckpointRequest::new(Mode::Exit)).await, Ok(Completed::Restored(..))));
    assert_eq!(pool.size(), 0);
    assert_eq!(orders(&pool).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_database_in_memory_refuses_and_keeps_its_data() {
    let context = context();
    let pool = with_orders(&context, "sqlite::memory:").await;
    order(&pool, "volatile").await;
    let error = context.checkpoint(CheckpointRequest::new(Mode::Rehearse)).await.unwrap_err().to_string();
    assert!(error.contains("a database in memory is gone with its last connection"), "{error}");
    assert_eq!(orders(&pool).await, ["volatile"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_an_executor_and_can_be_acquired_from() {
    async fn generic<'a, A: Acquire<'a, Database = Sqlite> + Send>(source: A) -> i64 {
        let mut connection = source.acquire().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut *connection).await.unwrap()
    }
    let directory = tempfile::tempdir().unwrap();
    let pool = with_orders(&context(), &url(&directory, "orders.db")).await;
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('a'), ('b')").execute(&mut *transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(generic(&pool).await, 0);
    let many = sqlx::raw_sql("INSERT INTO orders VALUES ('a'); INSERT INTO orders VALUES ('b')").execute(&pool).await.unwrap();
    assert_eq!((many.rows_affected(), generic(&pool).await), (2, 2));
    assert!(sqlx::query("SELECT text FROM orders WHERE text = 'c'").fetch_optional(&pool).await.unwrap().is_none());
    pool.close().await;
    assert!(pool.is_closed());
    assert!(matches!(pool.acquire().await, Err(sqlx::Error::PoolClosed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_and_dropped_pools_leave_the_context() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let closed = with_orders(&context, &url(&directory, "closed.db")).await;
    let dropped = with_orders(&context, &url(&directory, "dropped.db")).await;
    assert_eq!(context.resources().len(), 2);
    closed.close().await;
    drop(dropped);
    assert!(context.resources().is_empty());
    assert!(context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.is_ok());
    assert!(closed.is_closed());
}

#[tokio::test]
async fn without_a_context_it_is_just_a_pool() {
    let directory = tempfile::tempdir().unwrap();
    let pool = SqlitePool::connect(&url(&directory, "orders.db")).await.unwrap();
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await.unwrap();
    assert_eq!(one, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_pool_is_drained_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let context = context();
    let watched = directory.path().to_owned();
    let look = move || match open_files(&watched) {
        files if files.is_empty() => Ok(()),
        files => Err(format!("still open: {files:?}").into()),
    };
    context.register(ResourceOptions::new("look").phase(Phase::Egress), AfterPool(look)).forever();
    let pool = SqlitePoolOptions::new().connect(&url(&directory, "orders.db")).await.unwrap();
    let managed = manage_in(&context, &pool).unwrap();
    let out = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    drop(out.1);
    let round = tokio::spawn({
        let context = context.clone();
        async move { context.checkpoint(CheckpointRequest::new(Mode::Exit)).await }
    });
    // The idle one is closed, the other one is waited for.
    while pool.size() > 1 {
        tokio::task::yield_now().await;
    }
    drop(out.0);
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));
    assert_eq!(pool.size(), 1);
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await.unwrap();
    assert_eq!(one, 1);
    drop(managed);
    assert_eq!(context.resources().len(), 1);
}

#[tokio::test]
async fn pools_that_cannot_be_drained_in_place_are_not_managed() {
    let directory = tempfile::tempdir().unwrap();
    let busy = SqlitePoolOptions::new().min_connections(2).connect(&url(&directory, "orders.db")).await.unwrap();
    let error = manage_in(&context(), &busy).unwrap_err();
    assert_eq!(error, ManageError::MinConnections(2));
    assert!(error.to_string().contains("set min_connections to 0"));
    let memory = SqlitePoolOptions::new().connect("sqlite::memory:").await.unwrap();
    assert_eq!(manage_in(&context(), &memory).unwrap_err(), ManageError::InMemory);
}
