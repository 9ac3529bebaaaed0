//! The pool against a PostgreSQL server of its own.
#![cfg(all(feature = "postgres", unix))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod postgres;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crac_core::{
    BoxError, CheckpointContext, CheckpointRequest, Completed, Context, Deadlines, Mode, Phase, Resource, ResourceOptions,
    SimEngine, async_trait,
};
use crac_sqlx::{PgPool, Target, manage_in};
use postgres::Cluster;
use sqlx::{Connection, PgConnection, postgres::PgPoolOptions};
use tokio::sync::{mpsc, oneshot};

fn context() -> Context {
    Context::builder("postgresql", Arc::new(SimEngine::new())).build().unwrap()
}

/// Stops a round in a phase; registered before a pool, after that pool has let go.
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

fn pause(context: &Context) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
    let (reached, pauses) = mpsc::unbounded_channel();
    context.register(ResourceOptions::new("pause").phase(Phase::Egress), Pause { reached }).forever();
    pauses
}

/// How many connections the server has from this user; it hears of a closed one a moment later, so that `until` is waited for.
async fn connections(observer: &mut PgConnection, user: &str, until: i64) {
    loop {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crac-' || $1")
            .bind(user)
            .fetch_one(&mut *observer)
            .await
            .unwrap();
        if count == until {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// A superuser's connection, and a role `app` with its password.
async fn observer(cluster: &Cluster) -> PgConnection {
    let mut observer = PgConnection::connect(&cluster.url("postgres", "root")).await.unwrap();
    sqlx::raw_sql("CREATE ROLE app LOGIN PASSWORD 'one'; CREATE TABLE orders (text TEXT); GRANT ALL ON orders TO app")
        .execute(&mut observer)
        .await
        .unwrap();
    observer
}

async fn orders(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT text FROM orders ORDER BY text").fetch_all(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_finishes_then_no_connection_is_left_then_calls_that_waited_go_on() {
    let Some(cluster) = Cluster::start("a_transaction_finishes", "root") else { return };
    let mut observer = observer(&cluster).await;
    let context = context();
    let mut pauses = pause(&context);
    let options = PgPoolOptions::new().min_connections(3);
    let pool = PgPool::connect_with_in(&context, options, cluster.url("app", "one").parse().unwrap()).await.unwrap();
    connections(&mut observer, "app", 3).await;
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('1')").execute(&mut *transaction).await.unwrap();

    let round = context.request(CheckpointRequest::new(Mode::Exit));
    while !format!("{pool:?}").contains("shut: true") {
        tokio::task::yield_now().await;
    }
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { sqlx::query("INSERT INTO orders VALUES ('3')").execute(&pool).await }
    });
    sqlx::query("INSERT INTO orders VALUES ('2')").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let go_on = pauses.recv().await.unwrap();
    connections(&mut observer, "app", 0).await;
    assert!(!waiting.is_finished());
    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Restored(..))));
    waiting.await.unwrap().unwrap();
    assert_eq!(orders(&pool).await, ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_never_ends_aborts_the_round_by_name() {
    let Some(cluster) = Cluster::start("a_transaction_that_never_ends", "root") else { return };
    let _observer = observer(&cluster).await;
    let mut deadlines = Deadlines::default();
    deadlines.hook = Duration::from_millis(500);
    let context = Context::builder("postgresql", Arc::new(SimEngine::new())).deadlines(deadlines).build().unwrap();
    let pool = PgPool::connect_in(&context, &cluster.url("app", "one")).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('mine')").execute(&mut *transaction).await.unwrap();
    let error = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await.unwrap_err().to_string();
    assert!(error.contains("1 connections or transactions are still checked out"), "{error}");
    assert!(error.contains("sqlx pool postgres://app@") && !error.contains("one@") && !error.contains(":one"), "{error}");
    assert_eq!(orders(&pool).await, Vec::<String>::new());
    transaction.commit().await.unwrap();
    assert_eq!(orders(&pool).await, ["mine"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_is_asked_for_and_a_stale_one_is_reported() {
    let Some(cluster) = Cluster::start("a_rotated_password", "root") else { return };
    let mut observer = observer(&cluster).await;
    let context = context();
    let mut pauses = pause(&context);
    let vault = Arc::new(Mutex::new(cluster.url("app", "one")));
    let pool = PgPool::builder()
        .context(&context)
        .options(PgPoolOptions::new().acquire_timeout(Duration::from_secs(5)))
        .on_restore({
            let vault = vault.clone();
            move |_life| {
                let url = vault.lock().unwrap().clone();
                async move { Ok(Target::Url(url)) }
            }
        })
        .connect(&cluster.url("app", "one"))
        .await
        .unwrap();

    let round = context.request(CheckpointRequest::new(Mode::Exit));
    let go_on = pauses.recv().await.unwrap();
    sqlx::raw_sql("ALTER ROLE app PASSWORD 'two'").execute(&mut observer).await.unwrap();
    *vault.lock().unwrap() = cluster.url("app", "two");
    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Restored(..))));
    assert_eq!(orders(&pool).await, Vec::<String>::new());

    // Now nobody tells the vault.
    let round = context.request(CheckpointRequest::new(Mode::Continue));
    let go_on = pauses.recv().await.unwrap();
    sqlx::raw_sql("ALTER ROLE app PASSWORD 'three'").execute(&mut observer).await.unwrap();
    go_on.send(()).unwrap();
    let report = round.await.unwrap().report().to_string();
    assert!(
        report.contains("cannot connect to postgres://app@") && report.contains("password authentication failed"),
        "{report}"
    );
    assert!(!report.contains(":two"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_reported_and_found_again() {
    let Some(cluster) = Cluster::start("a_server_that_is_away", "root") else { return };
    drop(observer(&cluster).await);
    let context = context();
    let mut pauses = pause(&context);
    let options = PgPoolOptions::new().acquire_timeout(Duration::from_secs(3));
    let pool = PgPool::builder().context(&context).options(options).connect(&cluster.url("app", "one")).await.unwrap();
    let round = context.request(CheckpointRequest::new(Mode::Continue));
    let go_on = pauses.recv().await.unwrap();
    cluster.stop();
    go_on.send(()).unwrap();
    let report = round.await.unwrap().report().to_string();
    assert!(report.contains("cannot connect to postgres://app@") && report.contains("/postgres again"), "{report}");
    cluster.control_start();
    // On a busy machine the check of the password alone may take longer than the acquire timeout.
    let found = async { while sqlx::query("SELECT 1").execute(&pool).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), found).await.unwrap();
    assert_eq!(orders(&pool).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_pool_has_no_connection_while_the_process_is_saved() {
    let Some(cluster) = Cluster::start("a_managed_pool", "root") else { return };
    let mut observer = observer(&cluster).await;
    let context = context();
    let mut pauses = pause(&context);
    let pool = PgPoolOptions::new().connect(&cluster.url("app", "one")).await.unwrap();
    let _managed = manage_in(&context, &pool).unwrap();
    let out = pool.begin().await.unwrap();
    let round = context.request(CheckpointRequest::new(Mode::Exit));
    out.rollback().await.unwrap();
    let go_on = pauses.recv().await.unwrap();
    connections(&mut observer, "app", 0).await;
    assert_eq!(pool.size(), 0);
    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Restored(..))));
    connections(&mut observer, "app", 1).await;
}
