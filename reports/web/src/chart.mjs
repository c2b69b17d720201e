// Draws pictures with ECharts as SVG. Each picture stands in a figure, whose button shows the same
// numbers as a table.
import * as echarts from 'echarts/core';
import { BarChart, CustomChart, LineChart, ScatterChart } from 'echarts/charts';
import {
  AriaComponent,
  DataZoomInsideComponent,
  DataZoomSliderComponent,
  GridComponent,
  LegendComponent,
  LegendScrollComponent,
  MarkLineComponent,
  TooltipComponent,
} from 'echarts/components';
import { SVGRenderer } from 'echarts/renderers';
import { beyond, el, has, real, scroller } from './page.mjs';

echarts.use([
  BarChart,
  CustomChart,
  LineChart,
  ScatterChart,
  AriaComponent,
  DataZoomInsideComponent,
  DataZoomSliderComponent,
  GridComponent,
  LegendComponent,
  LegendScrollComponent,
  MarkLineComponent,
  TooltipComponent,
  SVGRenderer,
]);

// ECharts needs plain colours; the style sheet defines them for each colour scheme.
export function colour(name) {
  const probe = el('span', { style: `color:var(--${name})` });
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

// Draws the pictures that come near the window, because a run may have a thousand pictures. The
// others only get their place, so that nothing moves later.
let near;
function whenNear(element, draw, reserve) {
  near ??= new IntersectionObserver(
    (entries) => {
      for (const {
        target,
        isIntersecting,
        boundingClientRect: { width },
      } of entries) {
        if (isIntersecting) (near.unobserve(target), target.draw());
        else if (width > 0) target.reserve(Math.round(width));
      }
    },
    { rootMargin: '400px' },
  );
  Object.assign(element, { draw, reserve });
  near.observe(element);
}

// height is in pixels, or a function height(width); option(width) returns the options of ECharts.
// table() is called when the table is asked for; onclick(what) after a click on a mark; onpick(x)
// after a click anywhere in the plot, where x is the index on the axis.
export function figure({
  title,
  note,
  summary,
  height,
  option,
  table,
  legend,
  onclick,
  onpick,
  className,
}) {
  const box = el('div', { class: 'chart' });
  const list = scroller(`${title}: table`);
  list.hidden = true;
  const button = el(
    'button',
    {
      type: 'button',
      class: 'toggle',
      'aria-pressed': 'false',
      'aria-label': `Table: ${title}`,
      onclick: () => {
        const show = list.hidden;
        if (show) list.replaceChildren(table());
        list.hidden = !show;
        picture.hidden = show;
        button.setAttribute('aria-pressed', String(show));
      },
    },
    'Table',
  );
  const picture = el('div', { class: 'picture' }, box, legend);
  const whole = el(
    'figure',
    { class: className },
    el(
      'figcaption',
      {},
      el('span', { class: 'title' }, title),
      button,
      note && el('span', { class: 'note' }, note),
    ),
    picture,
    list,
  );
  const reserve = (width) => {
    box.style.height = `${typeof height === 'function' ? height(width) : height}px`;
  };
  if (typeof height === 'number') reserve();
  let chart,
    drawn = 0;
  function draw() {
    const width = box.clientWidth;
    if (width === 0) return;
    drawn = width;
    reserve(width);
    chart ??= echarts.init(box, null, { renderer: 'svg' });
    chart.resize();
    const text = colour('text'),
      line = colour('line'),
      dim = colour('dim');
    const styled = option(width);
    for (const axis of [styled.xAxis, styled.yAxis].flat()) {
      axis.axisLine = { show: true, lineStyle: { color: dim } };
      axis.axisLabel = { color: dim, hideOverlap: true, ...axis.axisLabel };
      axis.nameTextStyle = { color: dim, ...axis.nameTextStyle };
      axis.splitLine = { lineStyle: { color: line }, ...axis.splitLine };
    }
    if (styled.legend)
      styled.legend = {
        type: 'scroll',
        itemWidth: 22,
        itemHeight: 10,
        top: 0,
        left: 0,
        right: 0,
        textStyle: { color: text },
        pageTextStyle: { color: text },
        pageIconColor: text,
        pageIconInactiveColor: line,
        ...styled.legend,
      };
    styled.tooltip = {
      confine: true,
      backgroundColor: colour('panel'),
      borderColor: dim,
      textStyle: { color: text, fontSize: 13 },
      ...styled.tooltip,
    };
    // The page writes its own description, because ECharts' built-in one would read out every
    // number.
    chart.setOption(
      {
        animation: false,
        aria: {
          enabled: true,
          label: { description: `${title}. ${summary ?? ''} The button Table shows the numbers.` },
        },
        ...styled,
      },
      true,
    );
  }
  whenNear(
    box,
    () => {
      draw();
      if (onclick) chart?.on('click', onclick);
      if (onpick)
        chart?.getZr().on('click', (e) => {
          const at = [e.offsetX, e.offsetY];
          if (chart.containPixel('grid', at)) onpick(chart.convertFromPixel('grid', at)[0]);
        });
      new ResizeObserver(() => {
        if (box.clientWidth !== drawn) draw();
      }).observe(box);
      // Behind its table a picture has no width. It is drawn again when it has one.
      addEventListener('schemechange', () => {
        drawn = 0;
        draw();
      });
    },
    reserve,
  );
  return whole;
}

export const tip = (...lines) =>
  el(
    'div',
    { class: 'tip' },
    lines.filter(has).map((l) => el('div', {}, l)),
  );

// Ratios are drawn on a logarithmic axis with an end on both sides, so that 0, 1e40 and NaN need no
// place of their own.
const low = -4,
  high = 6;
export const level = (ratio) =>
  (typeof ratio === 'number'
    ? Math.min(Math.max(ratio > 0 ? Math.log10(ratio) : low, low), high)
    : high) - low;
// Bars start at the foot of the axis; marks and lines may use a shorter axis.
export function ratioAxis(ratios, { fit = false } = {}) {
  const levels = ratios.filter(has).map(level);
  const top = Math.ceil(levels.reduce((a, b) => Math.max(a, b), 1 - low) - 1e-9),
    foot = fit ? Math.floor(levels.reduce((a, b) => Math.min(a, b), -low - 1)) : 0;
  return {
    type: 'value',
    name: 'error / bound',
    nameLocation: 'end',
    nameTextStyle: { align: 'left' },
    min: foot,
    max: top,
    interval: top - foot > 6 ? 2 : 1,
    axisLabel: {
      formatter: (l) =>
        l === 0 ? `≤ 1e${low}` : l === high - low ? `≥ 1e${high}` : real(10 ** (l + low)),
    },
  };
}
// The line at 1 is the bound itself.
export const boundLine = (label = 'bound') => ({
  silent: true,
  symbol: 'none',
  data: [{ yAxis: -low }],
  lineStyle: { color: colour('bad'), type: 'solid', width: 1.5 },
  label: { formatter: label, position: 'end', color: colour('bad') },
});

// Values beyond the bound have another colour and are hatched.
export const ratioBar = (ratio) => ({
  value: has(ratio) ? level(ratio) : null,
  itemStyle: beyond(ratio)
    ? {
        color: colour('f1'),
        decal: {
          symbol: 'rect',
          symbolSize: 1,
          color: colour('bg'),
          dashArrayX: [1, 0],
          dashArrayY: [2, 5],
          rotation: -Math.PI / 4,
        },
      }
    : { color: colour('h3') },
});

// Counts are drawn on a logarithmic axis that has a place for 0.
export const countLevel = (n) => (n > 0 ? Math.log10(n) + 1 : 0);
export const countAxis = (name) => ({
  type: 'value',
  name,
  nameTextStyle: { align: 'left' },
  min: 0,
  minInterval: 1,
  axisLabel: { formatter: (l) => (l === 0 ? '0' : Number.isInteger(l) ? real(10 ** (l - 1)) : '') },
});

const symbols = [
  'circle',
  'rect',
  'triangle',
  'diamond',
  'emptyCircle',
  'emptyRect',
  'emptyTriangle',
  'emptyDiamond',
];
const seriesColour = (n) => colour(`s${(n % 8) + 1}`);
// The n-th line. No two of the first 64 lines have both their colour and their symbol in common.
export const seriesLook = (n) => ({
  color: seriesColour(n),
  symbol: symbols[(n + Math.floor(n / 8)) % 8],
});
// The n-th part of a bar. Where colours repeat, the hatching differs.
export const seriesFill = (n) => ({
  color: seriesColour(n),
  decal:
    n < 8
      ? undefined
      : {
          symbol: 'rect',
          symbolSize: 1,
          color: colour('bg'),
          dashArrayX: [1, 0],
          dashArrayY: [2, 4],
          rotation: (-Math.PI / 4) * Math.floor(n / 8),
        },
});
