# Runs one scenario with ruby-pg (libpq): a job in JSON on stdin, a report in JSON on stdout. A connection has a
# thread of its own; libpq waits outside of Ruby's lock.
require 'digest/md5'
require 'digest/sha2'
require 'json'
require 'pg'
require_relative 'soak'

Thread.report_on_exception = false

class Report
  attr_reader :detail

  def initialize(size)
    @lock = Mutex.new
    @statements = @wrong = 0
    @errors = Hash.new(0)
    @detail = Array.new(size)
  end

  def count(statements, wrong = 0)
    @lock.synchronize { @statements += statements; @wrong += wrong }
  end

  def failed(error)
    @lock.synchronize { @errors[error.message.strip] += 1 }
  end

  def to_json(*)
    JSON.generate({ statements: @statements, wrong: @wrong, errors: @errors, detail: @detail })
  end
end

# Run the block for every URL at once, each on a connection of its own; its failures are counted.
def everywhere(urls)
  report = Report.new(urls.size)
  urls.each_with_index.map do |url, index|
    Thread.new do
      connection = PG.connect(url)
      report.detail[index] = yield connection, index, report
    rescue StandardError => e
      report.failed(e)
    ensure
      connection&.close
    end
  end.each(&:join)
  report
end

# The rows, or the code where the server refuses; what is no answer of the server is raised.
def outcome(report)
  report.count(1)
  found = yield
  found.is_a?(PG::Result) ? found.values : found
rescue PG::Error => e
  e.result&.error_field(PG::PG_DIAG_SQLSTATE) || raise
end

def isolation(job)
  text = 'select name from who'
  everywhere(job['urls']) do |connection, index, report|
    connection.prepare('who', text)
    ways = [-> { connection.exec(text) }, -> { connection.exec_prepared('who') }, -> { connection.exec_params(text, []) }]
    wrong = (0...job['rounds']).count { |round| ways[round % ways.size].call.getvalue(0, 0) != job['expect'][index] }
    report.count(job['rounds'], wrong)
    wrong
  end
end

def copy(job)
  table = job['table']
  everywhere(job['urls']) do |connection, client, report|
    lines = (0...job['rounds']).map { |n| "#{client}\t#{n}\tbody #{client} #{n}\n" }
    connection.copy_data("copy #{table} from stdin") { lines.each { |line| connection.put_copy_data(line) } }
    refused = outcome(report) do
      connection.copy_data("copy #{table} from stdin") { connection.put_copy_data("#{client}\t-1\trefused\n") }
    end
    back = +''
    connection.copy_data("copy (select * from #{table} where client = #{client} order by n) to stdout") do
      while (line = connection.get_copy_data)
        back << line
      end
    end
    report.count(2, back == lines.join ? 0 : 1)
    [refused, Digest::SHA256.hexdigest(back), connection.exec('select 1').values]
  end
end

def mixed(job)
  table = job['table']
  everywhere(job['urls']) do |connection, client, report|
    seen = []
    step = ->(&work) { seen << outcome(report, &work) }
    connection.prepare('insert', "insert into #{table} values ($1, $2, 'row') returning n")
    connection.prepare('count', "select count(*) from #{table} where client = $1")
    insert = ->(n) { step.call { connection.exec_prepared('insert', [client, n]) } }
    count = -> { step.call { connection.exec_prepared('count', [client]) } }

    binary = { value: "\x00\xFF".b, format: 1, type: 17 }
    number = { value: [2**40].pack('q>'), format: 1, type: 20 }
    typed = 'select $1::int8, $2::bytea, $3::text, $4::timestamptz, $5::numeric'
    [0, 1].each do |format|
      step.call do
        connection.exec_params(typed, [number, binary, "naïve #{client}", '1970-01-02Z', '1.50'], format).values.inspect
      end
    end

    # More statements than a server connection keeps, then the first ones again.
    which = job['rounds'] * 4 / 5
    which.times { |n| connection.prepare("many#{n}", "select #{n} + $1::int") }
    job['rounds'].times { |n| step.call { connection.exec_prepared("many#{n % which}", [client]) } }

    # A name that the server refused is free; one that is taken is refused.
    step.call { connection.prepare('late', 'select nonsense') && 'prepared' }
    step.call { connection.prepare('late', 'select 1') && 'prepared' }
    step.call { connection.exec_prepared('late') }

    step.call { connection.exec('begin') }
    2.times { insert.call(1) }
    count.call
    step.call { connection.exec('commit') }
    count.call

    step.call { connection.exec('begin') }
    5.times { |n| insert.call(n) }
    step.call { connection.exec('rollback') }
    count.call

    pipeline(connection) { |found| seen << found }
    count.call
    big = connection.exec_params('select repeat($1, 3000000)', ['ab']).getvalue(0, 0)
    seen << Digest::SHA256.hexdigest(big) << connection.exec_params('select md5($1::text)', [big]).values
    rows = connection.exec('select n, md5(n::text) from generate_series(1, 20000) n').values
    seen << Digest::SHA256.hexdigest(rows.inspect)
    report.count(3)

    step.call do
      connection.send_query('select pg_sleep(20)')
      connection.flush
      sleep 0.2
      connection.cancel
      connection.get_last_result
    end
    count.call
    seen
  end
end

# Two synchronisation points, and an error before the first one.
def pipeline(connection)
  connection.enter_pipeline_mode
  connection.send_query_params('select 1 / $1::int', ['0'])
  connection.send_query_params("select 'skipped'", [])
  connection.pipeline_sync
  connection.send_query_params('select $1::text', ['after'])
  connection.pipeline_sync
  synchronised = 0
  while synchronised < 2
    result = connection.sync_get_result
    next if result.nil?

    synchronised += 1 if result.result_status == PG::PGRES_PIPELINE_SYNC
    yield [result.result_status, result.error_field(PG::PG_DIAG_SQLSTATE), result.values]
  end
  connection.exit_pipeline_mode
end

def timeouts(job)
  everywhere(job['urls'] + job['plain']) do |connection, _, report|
    outcome(report) { connection.exec("select pg_sleep(#{job['seconds']})") && 'finished' }
  end
end

def ddl(job)
  table = job['table']
  ready = Queue.new
  changed = Thread.new do
    job['urls'].size.times { ready.pop }
    PG.connect(job['owner']) { |owner| owner.exec("alter table #{table} add column extra text default 'new'") }
  end
  everywhere(job['urls']) do |connection, _, report|
    text = "select * from #{table} where id = $1"
    stale = 0
    connection.prepare("row#{stale}", text)
    run = lambda do
      job['rounds'].times do
        found = connection.exec_prepared("row#{stale}", [1])
        report.count(1, found[0]['name'] == 'one' ? 0 : 1)
      rescue PG::FeatureNotSupported => e
        raise unless e.message.include?('cached plan must not change result type')

        stale += 1
        report.count(1)
        connection.prepare("row#{stale}", text) # a new name of the same text, as ActiveRecord has it
      end
    end
    run.call
    ready << true
    changed.join
    run.call
    stale
  end
end

job = JSON.parse($stdin.read)
puts send(job['scenario'], job).to_json
