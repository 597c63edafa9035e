package kafka

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Metrics counts requests and errors by API. A nil *Metrics counts nothing.
type Metrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
	// sessions and evicted are those of fetches.
	sessions prometheus.Gauge
	evicted  prometheus.Counter
	// bySlot are the histograms in the order of apis: no lookup by label a request.
	bySlot []prometheus.Observer
}

// NewMetrics registers the package's metrics.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "chronik_kafka_request_seconds",
			Help:    "Time from a request's arrival to its response, by API.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14),
		}, []string{"api"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chronik_kafka_errors_total",
			Help: "Errors in responses, by API and Kafka's name of the error.",
		}, []string{"api", "error"}),
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "chronik_kafka_fetch_sessions", Help: "Incremental fetch sessions."}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chronik_kafka_fetch_sessions_evicted_total", Help: "Fetch sessions that were not used for two minutes and made room for others.",
		}),
	}
	for _, c := range []prometheus.Collector{m.seconds, m.errors, m.sessions, m.evicted} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	m.bySlot = make([]prometheus.Observer, len(apis))
	for i := range apis {
		m.bySlot[i] = m.seconds.WithLabelValues(apis[i].name)
	}
	return m, nil
}

func (m *Metrics) observe(slot int, took time.Duration) {
	m.bySlot[slot].Observe(took.Seconds())
}

func (m *Metrics) failed(key int16, k *kerr.Error) {
	if m != nil {
		m.errors.WithLabelValues(apiName(key), k.Message).Inc()
	}
}

func (m *Metrics) sessionsAre(n int) {
	if m != nil {
		m.sessions.Set(float64(n))
	}
}

func (m *Metrics) sessionEvicted() {
	if m != nil {
		m.evicted.Inc()
	}
}
