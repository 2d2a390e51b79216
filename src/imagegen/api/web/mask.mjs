// The mask: strokes in shares of the picture's size, drawn for the eye and for the service.

/** The longest side of a mask in pixels; the service scales it to the picture. */
const LONGEST = 1536;

/** Draw the strokes in one colour. `size` of a stroke: its width as a share of the longer side. */
export function draw(context, strokes, colour) {
  const { width, height } = context.canvas;
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: colour });
  for (const { size, erase, points } of strokes) {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.lineWidth = size * Math.max(width, height);
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * width, y * height));
    // A point alone is a dot.
    if (points.length === 1) context.lineTo(points[0][0] * width, points[0][1] * height);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

/**
 * The mask as a PNG, whose transparent part is repainted: imagegen's own API and OpenAI's read it the same way.
 * undefined if nothing is painted.
 */
export function maskOf({ input, strokes }) {
  if (!strokes.some((stroke) => !stroke.erase)) return undefined;
  const scale = Math.min(1, LONGEST / Math.max(input.width, input.height));
  const canvas = Object.assign(document.createElement("canvas"), {
    width: Math.max(1, Math.round(input.width * scale)),
    height: Math.max(1, Math.round(input.height * scale)),
  });
  const context = canvas.getContext("2d");
  draw(context, strokes, "#000");
  context.globalCompositeOperation = "source-out";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
