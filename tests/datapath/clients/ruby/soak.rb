# The soak: varied work until the time is over, each answer checked. What failed and what was wrong is kept with its
# time; who asks judges what of it is explained.
require 'digest'
require 'pg'
require 'securerandom'

class Soaker
  MOST = 500
  MANY = 300
  STEPS = %i[own typed transaction copies changing big pipeline refused many own cancelled].freeze

  def initialize(job, index, report)
    @job, @index, @report = job, index, report
    @name = "#{job['client']}-#{index}"
    @failed = []
    @wrong = []
  end

  def run
    finish = now + @job['seconds']
    lifetime = @job['lifetimes'][@index]
    @round = @index
    while now < finish
      step
      close if lifetime.positive? && @connection && now - @opened > lifetime
      sleep @job['pause'] * (0.5 + rand)
      @round += 1
    end
    close
    { failed: @failed, wrong: @wrong }
  end

  private

  def now = Process.clock_gettime(Process::CLOCK_REALTIME)

  def step
    open unless @connection
    send(STEPS[@round % STEPS.size])
  rescue PG::Error => e
    @failed << [now, e.message.strip] if @failed.size < MOST
    # A connection goes on after a stale plan, as it would with PostgreSQL itself.
    if e.is_a?(PG::FeatureNotSupported)
      @stale += 1
    else
      close
    end
  end

  def open
    @connection = PG.connect(@job['urls'][@index])
    @opened = now
    @stale = 0
    @prepared = {}
  end

  def close
    @connection&.close
    @connection = nil
  rescue PG::Error
    @connection = nil
  end

  def check(what, found, expected)
    @report.count(1, found == expected ? 0 : 1)
    return if found == expected || @wrong.size >= MOST

    @wrong << [now, "#{what}: #{found.inspect}, not #{expected.inspect}"[0, 300]]
  end

  def token = SecureRandom.hex(8)

  # Run a statement that is prepared at its first use.
  def prepared(text, values)
    name = @prepared[text]
    unless name
      name = "s#{@prepared.size}"
      @connection.prepare(name, text)
      @prepared[text] = name
    end
    @connection.exec_prepared(name, values).values
  end

  def own
    text = 'select name, $1::text from who'
    ways = [
      ->(mine) { @connection.exec(text.sub('$1', "'#{mine}'")).values },
      ->(mine) { @connection.exec_params(text, [mine]).values },
      ->(mine) { prepared(text, [mine]) },
    ]
    ways.each do |way|
      mine = token
      check('own schema', way.call(mine), [[@job['expect'][@index], mine]])
    end
  end

  def typed
    mine = "naïve #{token}"
    number = rand(2**31)
    found = prepared("select $1::int8, $2::text, $3::text is null, encode(convert_to($2, 'UTF8'), 'hex')", [number, mine, nil])
    check('typed', found, [[number.to_s, mine, 't', mine.unpack1('H*')]])
  end

  def rolled_back
    @connection.exec('begin')
    yield
    @connection.exec('rollback')
    @report.count(2)
  end

  def transaction
    rolled_back do
      3.times do |n|
        found = prepared('insert into work values ($1, $2, $3) returning n', [@name, n, token])
        check('insert', found, [[n.to_s]])
      end
      check('count', @connection.exec_params('select count(*) from work where client = $1', [@name]).values, [['3']])
    end
  end

  def copies
    lines = Array.new(60) { |n| "#{@name}\t#{n}\t#{token}\n" }
    rolled_back do
      @connection.copy_data('copy work from stdin') { lines.each { |line| @connection.put_copy_data(line) } }
      back = +''
      @connection.copy_data("copy (select * from work where client = '#{@name}' order by n) to stdout") do
        while (line = @connection.get_copy_data)
          back << line
        end
      end
      check('copy', back, lines.join)
    end
  end

  # After a stale plan it prepares the same text by a new name, as ActiveRecord does.
  def changing
    name = "changing#{@stale}"
    unless @prepared[name]
      @connection.prepare(name, 'select * from public.changing where id = $1')
      @prepared[name] = name
    end
    check('changed table', @connection.exec_prepared(name, [1]).first&.fetch('name'), 'one')
  end

  def big
    mine = token
    text = prepared('select repeat($1::text, 10000)', [mine])[0][0]
    check('big row', text == mine * 10_000, true)
    check('big parameter', @connection.exec_params('select md5($1::text)', [text]).values, [[Digest::MD5.hexdigest(text)]])
  end

  def pipeline
    numbers = Array.new(6) { rand(2**31).to_s }
    @connection.enter_pipeline_mode
    numbers.each { |number| @connection.send_query_params('select $1::text', [number]) }
    @connection.pipeline_sync
    found = []
    loop do
      result = @connection.sync_get_result
      next if result.nil?
      break if result.result_status == PG::PGRES_PIPELINE_SYNC

      result.check
      found << result.values
    end
    @connection.exit_pipeline_mode
    numbers.zip(found) { |number, values| check('pipeline', values, [[number]]) }
  end

  def refused
    code = begin
      prepared('select 1 / $1::int4', [0])
      'no error'
    rescue PG::DivisionByZero
      '22012'
    end
    check('error', code, '22012')
    check('after the error', @connection.exec('select 1').values, [['1']])
  end

  def many
    3.times do
      which = rand(MANY)
      check('many statements', prepared("select #{which} + $1::int4", [@index]), [[(which + @index).to_s]])
    end
  end

  # A request to cancel may come too late; the statement then ends by itself.
  def cancelled
    return unless (@round % 3).zero?

    @connection.send_query('select pg_sleep(1.5)')
    @connection.flush
    sleep 0.1
    @connection.cancel
    begin
      @connection.get_last_result
    rescue PG::QueryCanceled
      @report.count(1)
    end
    check('after the cancel', @connection.exec_params('select $1::int4', [1]).values, [['1']])
  end
end

def soak(job)
  report = Report.new(job['urls'].size)
  job['urls'].each_index.map do |index|
    Thread.new { report.detail[index] = Soaker.new(job, index, report).run }
  end.each(&:join)
  report
end
